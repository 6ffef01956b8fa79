module github.com/cribox/cribox/kube-tests

go 1.26.0
