"""What people and clients talk to: the command line and the endpoint."""
