// Command keyless-fixture signs an image as a sigstore instance that exists for this one signature,
// for tests through the daemon's socket. It prints the trusted root and the bundle as JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/cribox/cribox/keyless/authority"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: keyless-fixture ISSUER SUBJECT sha256:HEX")
		os.Exit(2)
	}
	if err := sign(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func sign(issuer, subject, image string) error {
	a, err := authority.New()
	if err != nil {
		return err
	}
	root, err := a.Root(nil)
	if err != nil {
		return err
	}
	b, err := a.Sign(issuer, subject, image, time.Now().Add(5*time.Minute)) // the certificates of the library begin later
	if err != nil {
		return err
	}
	bundle, err := protojson.Marshal(b)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]json.RawMessage{"trustedRoot": root, "bundle": bundle})
}
