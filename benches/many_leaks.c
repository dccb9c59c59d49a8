/* A program that leaks nearly all that it allocates, for measuring how long it takes to report that.
 *
 *   many_leaks [-n BLOCKS]      default 10000000, of 24 to 64 bytes
 *
 * In turn, by many call stacks: single blocks, some with a text that no other has, some with one that many have;
 * lists of up to eight blocks; cycles of up to eight; trees. One block in a hundred is kept.
 *
 * It prints
 *   blocks COUNT BYTES          what it asked malloc for
 *   leaked COUNT BYTES          how much of that it leaked (stale words may hide a handful)
 *   ready
 * and ends with the end of stdin. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

enum { SMALLEST = 24, LARGEST = 64, LONGEST = 8, DEEPEST = 6 };

static uint64_t blocks, bytes, leaked, leaked_bytes;
static void **kept;

static uint64_t random_number(void)
{
    static uint64_t state = 42;
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void **new_block(void)
{
    size_t size = SMALLEST + random_number() % ((LARGEST - SMALLEST) / 8 + 1) * 8;
    void **block = calloc(1, size);
    if (!block)
        exit(3);
    blocks++;
    bytes += size;
    return block;
}

static void new_single(void)
{
    void **block = new_block();
    switch (random_number() % 4) {
    case 0:
        snprintf((char *)block, SMALLEST, "client %lu", blocks);
        break;
    case 1:
        strcpy((char *)block, "a lost message");
        break;
    default:
        block[0] = (void *)(uintptr_t)12345;
    }
}

static void new_list(int is_cycle)
{
    int length = 2 + (int)(random_number() % (LONGEST - 1));
    void **first = new_block(), **last = first;
    for (int i = 1; i < length; i++) {
        void **node = new_block();
        last[0] = node;
        last = node;
    }
    if (is_cycle)
        last[0] = first;
}

static void new_tree(void)
{
    void **nodes[LONGEST];
    int length = 2 + (int)(random_number() % (LONGEST - 1));
    for (int i = 0; i < length; i++) {
        nodes[i] = new_block();
        if (i > 0)
            nodes[(i - 1) / 2][1 + (i - 1) % 2] = nodes[i];
    }
}

static void leak_something(void)
{
    switch (random_number() % 8) {
    case 0:
        new_list(0);
        break;
    case 1:
        new_list(1);
        break;
    case 2:
        new_tree();
        break;
    default:
        new_single();
    }
}

/* Two functions, so that there are as many stacks as ways to take turns. */
static void other_way(int depth);

static void __attribute__((noinline)) one_way(int depth)
{
    if (depth == 0)
        leak_something();
    else if (random_number() % 2)
        one_way(depth - 1);
    else
        other_way(depth - 1);
    __asm__ volatile("" ::: "memory"); /* no tail call */
}

static void __attribute__((noinline)) other_way(int depth)
{
    one_way(depth > 0 ? depth - 1 : 0);
    __asm__ volatile("" ::: "memory");
}

static void build(uint64_t wanted)
{
    uint64_t keep = wanted / 100;
    kept = malloc((keep + 1) * sizeof *kept);
    if (!kept)
        exit(3);
    for (uint64_t i = 0; i < keep; i++)
        kept[i] = new_block();
    leaked = blocks;
    leaked_bytes = bytes;
    while (blocks < wanted)
        one_way(1 + (int)(random_number() % DEEPEST));
    leaked = blocks - leaked;
    leaked_bytes = bytes - leaked_bytes;
}

/* What the calls above have left on the stack is no reference any more. */
static void __attribute__((noinline)) clean_stack(void)
{
    volatile char unused[16384];
    memset((char *)unused, 0, sizeof unused);
}

int main(int count, char **arguments)
{
    uint64_t wanted = count == 3 && strcmp(arguments[1], "-n") == 0 ? strtoull(arguments[2], NULL, 10) : 10000000;
    if (wanted < 1000 || (count != 1 && count != 3)) {
        fprintf(stderr, "usage: many_leaks [-n BLOCKS]\n");
        return 2;
    }
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    build(wanted);
    clean_stack();
    printf("blocks %lu %lu\nleaked %lu %lu\nready\n", blocks, bytes, leaked, leaked_bytes);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    free(kept);
    return 0;
}
