"""The benchmarks: what repair, search and the whole loop reach, in figures."""
