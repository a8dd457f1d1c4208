"""The transformer: attention types, layers, the model."""
