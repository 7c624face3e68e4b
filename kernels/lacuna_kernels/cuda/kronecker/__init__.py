"""The ways to multiply by a Kronecker-sparse factor on a GPU: a file each, and the choice among them."""
