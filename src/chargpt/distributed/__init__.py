"""The rank environment, the rendezvous of ranks, and Slurm."""
