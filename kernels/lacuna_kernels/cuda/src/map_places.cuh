// How the places of a kernel map's order are grouped: kernel_map.cu makes them, convolutions read them.
#pragma once

#define GROUP 64       // places of a word of `present`
#define MOST_ROWS 256  // of a tile: in parts of the offsets before the last, places are written by so many
