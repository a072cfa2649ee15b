"""What models of a distribution are made of."""
