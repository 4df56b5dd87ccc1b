// What the C library holds: Glibc has no module for it.
#include <malloc.h>
