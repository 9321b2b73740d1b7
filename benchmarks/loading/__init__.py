"""How long loading takes over reading the files once, and the host memory that it takes."""
