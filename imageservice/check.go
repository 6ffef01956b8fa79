package imageservice

import (
	"github.com/cribox/cribox/imageservice/keyring"
	"github.com/cribox/cribox/imageservice/signature"
)

// CheckCredentials looks for what would fail when a registry asks for the node's credentials:
// the file, and the helpers in a folder or, if that is "", in PATH. present is false if there
// is no file.
func CheckCredentials(file, helpers string) (present bool, problems []error) {
	return keyring.New(file, helpers).Check()
}

// CheckPolicy looks for what would refuse pulls because of the signature policy itself.
func CheckPolicy(file string) []error { return signature.Open(file).Check() }
