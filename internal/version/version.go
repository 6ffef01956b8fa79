// Package version says which version a program of this module is.
package version

import "runtime/debug"

// Of returns the version that the build has set, or else the version of the Go module.
func Of(set string) string {
	if set != "" {
		return set
	}
	info, ok := debug.ReadBuildInfo()
	if ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "0.1.0-dev"
}
