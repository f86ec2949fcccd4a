"""One file for each command of the command line. They only assemble; what can be known to be wrong is said at once."""
