package place

import _ "embed"

//go:embed place_amd64
var program string
