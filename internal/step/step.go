// Package step names every side effect, so that a test can interrupt the program there.
//
// A package with side effects takes a Hook in its Config and passes the name of each side effect to
// it right after the side effect. A binary that is built with the tag steps ends or panics at the
// step that the environment names; Go tests pass their own Hook.
package step

// Hook is called with the name of each side effect. A nil Hook does nothing.
type Hook func(name string)

// Pass calls the hook if it is not nil.
func (h Hook) Pass(name string) {
	if h != nil {
		h(name)
	}
}
