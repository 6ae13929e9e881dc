"""How a stage makes the file fit: dead paths, constants, the order of units, k and b."""
