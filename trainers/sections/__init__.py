"""What the reports of single binaries add: each module has a function `sections`."""
