"""The load scenarios of `timepoint bench`, and the cheap clients that they are made of. They reach a product by its public wire only."""
