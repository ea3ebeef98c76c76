"""What programs that test a server by real clients expect to find on it: tiny models made on the spot, a service principal."""
