// Package step names every side effect, so that a test can stop there.
//
// A package that has side effects takes a Hook in its Config and passes the name of each side
// effect right after it. The build with the tag `steps` ends the process or panics at a name that
// the environment has; a test gives a Hook of its own.
package step

// Hook is called with the name of each side effect. nil does nothing.
type Hook func(name string)

// Pass calls the hook, if there is one.
func (h Hook) Pass(name string) {
	if h != nil {
		h(name)
	}
}
