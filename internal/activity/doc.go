// Package activity remembers what pods, containers and pulls are doing, and what they did of late,
// for people who want to know why something takes long or has failed. Nothing else is decided by it.
//
// A context says whom work is about (Table.About), and Do gives a part of it a name. A step that
// takes long is logged once, unless a step within it does, or data still moves.
package activity
