"""The library: values, model, datastore, kernel. Nobody runs it, everybody stands on it."""
