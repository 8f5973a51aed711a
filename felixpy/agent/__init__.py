"""The agent: datastore in, kernel out."""
