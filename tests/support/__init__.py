"""What tests and benchmarks share: facts, stubs, services, and the words of given, when and then."""
