"""What tests of several rooms need: private network namespaces and fakes."""
