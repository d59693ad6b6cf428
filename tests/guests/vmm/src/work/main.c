/* A picture becomes a PNG, and the PNG the same picture: both libraries were compiled well. */
#include <stdio.h>
#include <string.h>
#include <stb/stb_image.h>
#include <stb/stb_image_write.h>

enum { SIDE = 64 };

static unsigned char picture[SIDE * SIDE], png[SIDE * SIDE];
static int size;

static void keep(void *context, void *data, int length)
{
	if (size + length <= (int)sizeof png)
		memcpy(png + size, data, length);
	size += length;
}

int main(void)
{
	unsigned char *again;
	unsigned hash = 2166136261u;
	int i, wide, high, parts;

	for (i = 0; i < SIDE * SIDE; i++)
		picture[i] = (i % SIDE) * (i / SIDE) >> 4;
	stbi_write_png_to_func(keep, NULL, SIDE, SIDE, 1, picture, SIDE);
	again = stbi_load_from_memory(png, size, &wide, &high, &parts, 1);
	if (!again || wide != SIDE || high != SIDE || memcmp(again, picture, sizeof picture))
		return 1;
	for (i = 0; i < size; i++)
		hash = (hash ^ png[i]) * 16777619u;
	printf("%d bytes, %08x\n", size, hash);
	return 0;
}
