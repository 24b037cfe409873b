"""Front ends: a model of any framework in, a canonical graph out."""
