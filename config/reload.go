package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// applied are the keys and tables that can change without a restart.
var applied = []string{"log_level", "default_runtime", "pause", "containers", "runtimes", "images.pinned"}

// Reload returns the configuration that is in effect after a reload: old with those values of next
// that can change without a restart. late are the other keys whose values differ.
func Reload(old, next Config) (now Config, late []string) {
	now = old
	now.LogLevel, now.DefaultRuntime = next.LogLevel, next.DefaultRuntime
	now.Containers, now.Runtimes = next.Containers, next.Runtimes
	now.Images.Pinned = next.Images.Pinned
	return now, slices.DeleteFunc(changed(old, next), func(key string) bool {
		table, _, _ := strings.Cut(key, ".")
		return slices.Contains(applied, table) || slices.Contains(applied, key)
	})
}

// changed returns the names of the keys whose values differ. Of [runtimes] it returns the table's
// name.
func changed(a, b Config) []string {
	return differences("", reflect.ValueOf(a), reflect.ValueOf(b))
}

func differences(table string, a, b reflect.Value) (keys []string) {
	for i := range a.NumField() {
		f := a.Type().Field(i)
		name := f.Tag.Get("toml")
		switch {
		case !f.IsExported():
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, differences(name+".", a.Field(i), b.Field(i))...)
		case !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
			keys = append(keys, fmt.Sprint(table, name))
		}
	}
	return keys
}
