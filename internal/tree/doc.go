// Package tree counts, walks and deletes folders that somebody else has filled, however deep, wide
// or oddly named they are.
//
// What a container or an image wrote may be nested tens of thousands of folders deep: deeper than a
// path can say, and deeper than a process has descriptors. So nothing here joins names to paths
// below the folder that it was given, follows a link, or holds more than a fixed number of
// descriptors.
//
// What it will not do: know whose folder it is, or decide what may go.
package tree
