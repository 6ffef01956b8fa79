package main

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// Sizes in the picture, in pixels.
const (
	barLeft   = 470 // where bars begin
	barOne    = 320 // the length of 1
	barHeight = 14
	lineEvery = 22
	headline  = 48
)

// draw draws a bar for each row: the second runtime's share of the first one's time, memory or
// processor time. Of rates it is the inverse, so that a shorter bar is always the better one.
func draw(w io.Writer, runtimes []*runtime) {
	a, b := runtimes[0], runtimes[1]
	var bars strings.Builder
	y, cpuOf := headline, ""
	for _, row := range rows {
		share := b.figures.median(row) / a.figures.median(row)
		if row.more {
			share = 1 / share
		}
		text := strings.ReplaceAll(row.text, "`", "")
		if strings.HasSuffix(text, "of that") {
			text = strings.Replace(text, "of that", "of "+cpuOf, 1)
		} else {
			cpuOf, _, _ = strings.Cut(text, " with ")
		}
		if math.IsNaN(share) || math.IsInf(share, 0) {
			continue
		}
		bars.WriteString(bar(html.EscapeString(text), share, y))
		y += lineEvery
	}
	width, height := barLeft+2*barOne+20, y+12
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="%d" y="20" font-size="14" fill="#222">%s, as a share of %s: shorter is better</text>
%s<line x1="%d" y1="32" x2="%[7]d" y2="%[8]d" stroke="#888" stroke-dasharray="4 3"/>
<text x="%[7]d" y="44" text-anchor="middle" fill="#666" font-size="11">%[5]s = 1</text>
</svg>
`, width, height, 16, b.name, a.name, bars.String(), barLeft+barOne, height-8)
}

// bar is one line. What is longer than twice the other's ends at the edge, and its number says how long it is.
func bar(text string, share float64, y int) string {
	color := "#2a7f62"
	if share > 1.02 {
		color = "#c26a2b"
	}
	length := int(math.Max(1, math.Min(share, 1.85)*barOne))
	return fmt.Sprintf("<text x=\"%d\" y=\"%d\" text-anchor=\"end\" fill=\"#222\">%s</text>\n"+
		"<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"/>\n<text x=\"%d\" y=\"%d\" fill=\"#222\">%s</text>\n",
		barLeft-8, y+barHeight-3, text, barLeft, y, length, barHeight, color, barLeft+length+5, y+barHeight-3, short(share))
}
