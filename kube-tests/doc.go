// Package kubetests runs Kubernetes on cribox and asserts what its users see: it knows kubectl, the
// folders of the cluster that hack/kube/up.sh makes, and nothing of cribox's inside.
//
// Every scenario is a test of its own in a namespace of its own. One that fails prints what kubectl
// shows of the namespace.
package kubetests
