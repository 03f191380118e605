"""What is measured of a trained network, apart from how it is shown."""
