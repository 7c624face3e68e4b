// How the places of a kernel map's order are grouped: kernel_map.cu makes them, convolutions read them.
#pragma once

#define GROUP 64       // places of a word of `present`
#define MOST_ROWS 256  // of a tile: a map has all of so many places of each offset that any of them has, and no others
#define TILE_PART 26   // of what tells a tile, the first bit of its part; those below are the group that it begins with
