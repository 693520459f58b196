/* The program: FUZZ_TARGET names the target; with FUZZ_SEEDS=DIR it writes that
 * target's seeds there and ends. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/fuzz/fuzz.h"

static const struct fuzz_target *const targets[] = {
#define X(name) &fuzz_##name,
    FUZZ_TARGETS(X)
#undef X
};
static const struct fuzz_target *target;
static const char *seeds_dir;
static uint32_t seed_count;

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* libFuzzer takes exit() for a failure of the target. */
static void end(int status)
{
    fflush(stdout);
    _exit(status);
}

static void list_targets(void)
{
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        puts(targets[i]->name);
    }
}

static const struct fuzz_target *find(const char *name)
{
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        if (strcmp(targets[i]->name, name) == 0) {
            return targets[i];
        }
    }
    list_targets();
    end(name[0] == '\0' ? 0 : 2);
    return NULL;
}

void fuzz_seed(struct slice input)
{
    char path[512];
    snprintf(path, sizeof path, "%s/seed-%02" PRIu32, seeds_dir, seed_count++);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    CHECK(fwrite(input.data, 1, input.size, f) == input.size);
    CHECK(fclose(f) == 0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    log_set_level(LOG_LEVEL_OFF);
    const char *name = getenv("FUZZ_TARGET");
    target = find(name != NULL ? name : "");
    seeds_dir = getenv("FUZZ_SEEDS");
    if (seeds_dir != NULL) {
        target->seed();
        end(0);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t size_max = target->size_max != 0 ? target->size_max : 4096;
    if (size <= size_max) {
        target->run(slice_of(data, size));
    }
    return 0;
}

/* ---- what targets share ---- */

bool fuzz_part(struct dec *d, struct slice *part)
{
    if (dec_left(d) < 2) {
        return false;
    }
    size_t size = dec_u16(d);
    size_t left = dec_left(d);
    *part = dec_raw(d, size < left ? size : left);
    return true;
}

void fuzz_add_part(struct buf *b, struct slice part)
{
    CHECK(part.size <= UINT16_MAX);
    enc_u16(b, (uint16_t)part.size);
    buf_append(b, part.data, part.size);
}

void fuzz_same(const struct buf *encoded, struct slice input)
{
    CHECK(slice_compare(buf_slice(encoded), input) == 0);
}

void fuzz_try_message(const struct fuzz_message *table, uint32_t count,
                      struct slice input)
{
    if (input.size > 0 && input.data[0] < count) {
        table[input.data[0]].try(slice_of(input.data + 1, input.size - 1));
    }
}

void fuzz_seed_messages(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint8_t bytes[96] = {(uint8_t)i};
        fuzz_seed(slice_of(bytes, sizeof bytes));
    }
}

void fuzz_seed_message(uint32_t at, struct buf *body)
{
    struct buf b = {0};
    enc_u8(&b, (uint8_t)at);
    buf_append(&b, body->data, body->size);
    fuzz_seed(buf_slice(&b));
    buf_free(&b);
    buf_free(body);
}
