package procfd

// InitName is what the first process calls itself. The program that systemd becomes at the very
// end, when all units have ended, sends SIGTERM to everybody and waits for up to 90 seconds until
// nobody is left.
var InitName = "/proc/1/comm"
