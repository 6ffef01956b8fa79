package procfd

// InitName is the file with the name of process 1. At shutdown, after all units have ended, systemd
// executes a program that sends SIGTERM to every process and waits up to 90 seconds for them to
// end.
var InitName = "/proc/1/comm"
