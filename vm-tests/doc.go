// Package vmtests runs cribox on a node of today: a virtual machine with systemd as its first
// process, cgroup v2 and AppArmor. It needs a machine that hack/vm/up.sh has booted and
// hack/vm/install.sh has put cribox on; `make test-vm` does all of it.
//
// The tests come through ssh and use what an administrator has: systemctl, crictl, critest. Those that
// begin with TestKube use kubectl, and the machine has to be a node: hack/vm/kube.sh. TestCrictlTests
// runs tests of crictl-tests there, the others with -all.
package vmtests
