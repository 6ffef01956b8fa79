module github.com/cribox/cribox/vm-tests

go 1.26.3
