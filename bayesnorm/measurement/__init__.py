"""What training data say of a network: batch statistics, their noise, channels."""
