"""How fast a compressed model answers: call by call, node by node, packed or not, and under load."""
