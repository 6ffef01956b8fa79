# Everything a person or a CI job does with this project. `make` lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL: # the compilers use all processors anyway

# A semantic version, as the CRI asks: the kubelet calls anything else "Unknown". Empty outside a clone: the binary then says what it knows.
VERSION ?= $(shell git describe --tags --match 'v[0-9]*.[0-9]*.[0-9]*' --dirty 2>/dev/null || \
	{ hash=$$(git describe --always --dirty --exclude '*' 2>/dev/null) && echo "0.1.0-dev+$$hash"; })
BIN := $(CURDIR)/bin

# A machine that starts us without a home still needs a place for Go's caches.
export HOME ?= /root
export GOWORK := off

GO_BUILD := env CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)"

##@ Try it (as root)

run: tools build ## start cribox beside a local registry, and run a pod
	@hack/run.sh

stop: ## take away what `make run` made
	@hack/stop.sh

hour: tools build ## a new user's first hour as a script: package, pods, a dead mirror, a full disk, from containerd and back
	@VERSION=$(VERSION) hack/hour.sh

kube-up: build ## start a Kubernetes cluster of NODES nodes (1) on cribox
	@hack/tools.sh kube
	@hack/kube/up.sh

kube-down: ## take away what `make kube-up` made
	@hack/kube/down.sh

##@ A virtual machine with Debian 12, systemd and AppArmor (as root; KVM=1 where there is /dev/kvm)

vm: ## make its image in bin/vm, once
	@hack/vm/image.sh

vm-shell: tools build vm ## a prompt in it, with cribox installed
	@VERSION=$(VERSION) hack/vm/shell.sh

test-vm: tools build vm ## what only such a machine shows, critest with two setups among it; writes docs/vm-results.md
	@VERSION=$(VERSION) hack/vm/test.sh

test-vm-kube: tools build ## that machine, with the kernel of Debian's backports, as a node of a Kubernetes cluster whose control plane runs here
	@hack/tools.sh kube
	@KERNEL=backports hack/vm/image.sh
	@KERNEL=backports VERSION=$(VERSION) hack/vm/test.sh -kube

test-vm-kernel: tools build ## the tests that depend on the kernel, on the one of Debian's backports
	@KERNEL=backports hack/vm/image.sh
	@KERNEL=backports VERSION=$(VERSION) hack/vm/test.sh -kernel

test-vm-selinux: tools build ## a machine with SELinux in place of AppArmor: labels, and what is denied
	@LSM=selinux hack/vm/image.sh
	@LSM=selinux VERSION=$(VERSION) hack/vm/test.sh -selinux

vm-smoke: tools build vm ## the shortest of it: package, unit, ten specs of critest, a kill
	@VERSION=$(VERSION) hack/vm/test.sh -smoke

##@ Develop

tools: ## install missing Debian packages; build runc, CNI plugins, crictl and critest into bin/
	@hack/tools.sh

build: ## build bin/cribox, bin/cribox-helper and bin/fixture
	@hack/timed.sh "building bin/cribox" $(GO_BUILD) -o $(BIN)/ . ./cribox-helper
	@cd crictl-tests && ../hack/timed.sh "building bin/fixture" $(GO_BUILD) -o $(BIN)/fixture ./cmd/fixture

keyless: ## build bin/cribox-keyless, which verifies signatures without a key (docs/signatures.md)
	@cd keyless && ../hack/timed.sh "building bin/cribox-keyless" $(GO_BUILD) -o $(BIN)/cribox-keyless .

keyless-fixture: keyless ## build bin/keyless-fixture, which signs images for tests
	@cd keyless && ../hack/timed.sh "building bin/keyless-fixture" $(GO_BUILD) -o $(BIN)/ ./keyless-fixture

test-keyless: ## the tests of bin/cribox-keyless
	@cd keyless && ../hack/timed.sh "tests of cribox-keyless" env CGO_ENABLED=0 go test -trimpath -count 1 ./...

build-steps: ## build bin/cribox-steps, which a crash test can end at a named step
	@hack/timed.sh "building bin/cribox-steps" $(GO_BUILD) -tags steps -o $(BIN)/cribox-steps .

test: test-unit test-crictl ## unit tests and crictl-tests (as root)

test-unit: tools test-keyless ## unit tests, with the race detector
	@hack/timed.sh "unit tests" env CRIBOX_BIN=$(BIN) CGO_ENABLED=1 go test -race -timeout 20m ./...

test-arm64: ## pause and place built for arm64, and unit tests as programs of arm64 under qemu-aarch64 (as root)
	@hack/arm64.sh

test-arm64-pod: ## a pod on an emulated machine of arm64, with Debian's kernel; writes its section of docs/vm-results.md (as root)
	@VERSION=$(VERSION) hack/arm64/pod.sh

FUZZTIME ?= 6s
fuzz: ## every fuzz target for FUZZTIME (6s)
	@hack/fuzz.sh $(FUZZTIME)

test-crictl: tools build build-steps keyless-fixture ## the real binaries over the socket, critest among them
	@[ "$$(id -u)" = 0 ] || { echo "error: make test-crictl needs root" >&2; exit 1; }
	@cd crictl-tests && ../hack/timed.sh "crictl-tests" env CRIBOX_BIN=$(BIN) go test -p 1 -count 1 -timeout 40m ./...

test-kube: build ## a Kubernetes cluster of two nodes on cribox, and what its users see (as root)
	@[ "$$(id -u)" = 0 ] || { echo "error: make test-kube needs root" >&2; exit 1; }
	@hack/tools.sh kube
	@hack/kube/test.sh

critest: tools build ## the CRI's validation suite, one by one three times, beside each other, and over WebSocket
	@[ "$$(id -u)" = 0 ] || { echo "error: make critest needs root" >&2; exit 1; }
	@cd crictl-tests && ../hack/timed.sh "critest, three times" env CRIBOX_BIN=$(BIN) \
		go test -count 3 -failfast -timeout 32m -run '^TestCritest$$' -v ./crictl -critest.parallel=1
	@cd crictl-tests && ../hack/timed.sh "critest, four specs at once" env CRIBOX_BIN=$(BIN) \
		go test -count 1 -timeout 12m -run '^TestCritest$$' -v ./crictl -critest.parallel=4
	@cd crictl-tests && ../hack/timed.sh "critest, streams over WebSocket" env CRIBOX_BIN=$(BIN) \
		go test -count 1 -timeout 12m -run '^TestCritest$$' -v ./crictl -critest.parallel=1 -critest.focus=Streaming -critest.websocket

bench: ## what a kubelet asks all the time, of 250 pods in one process, and what metrics and traces add; needs no runc (as root; BENCH="-count 5" for more)
	@go test -run '^$$' -bench '^Benchmark(Node|Monitoring)$$' -benchtime 0.5s $(BENCH) .

ARCHITECTURES ?= amd64 arm64

ROUNDS ?= 3
PODS ?= 40
compare: tools build ## measure cribox beside containerd, ROUNDS times (3) with PODS pods (40); writes docs/performance.md (as root)
	@hack/tools.sh containerd
	@hack/compare.sh $(ROUNDS) $(PODS)

lint: ## formatting, go vet and the linters of .golangci.yml
	@hack/lint.sh

image: ## build a container image that carries bin/cribox, with docker
	docker build --build-arg VERSION=$(VERSION) -t cribox:$(or $(VERSION),dev) .

##@ Release

packages: ## Debian and RPM packages for ARCHITECTURES (amd64 arm64), in bin/packages
	@VERSION=$(VERSION) ARCHITECTURES="$(ARCHITECTURES)" hack/packages/build.sh

test-packages: ## build the packages twice, compare them, then install, upgrade, remove and purge the Debian one in a folder (as root)
	@hack/packages/test.sh

release: packages ## the packages, static binaries for ARCHITECTURES, and SHA256SUMS, in bin/packages
	@for arch in $(ARCHITECTURES); do \
		GOOS=linux GOARCH=$$arch $(GO_BUILD) -o $(BIN)/packages/cribox-linux-$$arch .; \
		GOOS=linux GOARCH=$$arch $(GO_BUILD) -o $(BIN)/packages/cribox-helper-linux-$$arch ./cribox-helper; \
		(cd keyless && GOOS=linux GOARCH=$$arch $(GO_BUILD) -o $(BIN)/packages/cribox-keyless-linux-$$arch .); done
	@cd $(BIN)/packages && sha256sum * >../SHA256SUMS && mv ../SHA256SUMS .

##@ Clean

clean: ## remove bin/ (run `make stop` first)
	rm -rf $(BIN)

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: run stop hour kube-up kube-down vm vm-shell test-vm test-vm-kube test-vm-kernel test-vm-selinux test-arm64 test-arm64-pod vm-smoke tools build keyless keyless-fixture test-keyless build-steps test test-unit fuzz test-crictl test-kube critest bench compare lint image packages release test-packages clean help
