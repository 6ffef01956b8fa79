package place

import _ "embed"

//go:embed place_arm64
var program string
