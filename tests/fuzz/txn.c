/* What a user writes to `flotilla kv txn`. */
#include "tests/fuzz/fuzz.h"

#include "cmd/txn.c" /* only it reads these lines */

enum { SHARDS = 128 };

static bool good_item(const struct skv_item *item)
{
    return item->key.size > SKV_OBJECT_SIZE &&
           item->key.size <= SKV_KEY_SIZE_MAX;
}

static void kv_txn_run(struct slice input)
{
    struct script *s = mem_alloc(sizeof *s);
    FILE *words = stderr;
    FILE *from = fmemopen((void *)(uintptr_t)input.data, input.size, "r");
    s->shard_count = SHARDS;
    stderr = fopen("/dev/null", "w");
    CHECK(stderr != NULL);
    if (from != NULL && read_script(s, from)) {
        CHECK(s->item_count <= SKV_ITEMS_MAX && s->text_count <= LINES_MAX);
        for (uint32_t i = 0; i < s->item_count; i++) {
            CHECK(good_item(&s->items[i]));
            CHECK(s->lines[i] < s->text_count);
        }
    }
    fclose(stderr);
    stderr = words;
    if (from != NULL) {
        fclose(from);
    }
    script_free(s);
}

static void kv_txn_seed(void)
{
    fuzz_seed(slice_text("compare a = 1\nput a 2\n# why\n\nput b \\x00\\n\n"));
    fuzz_seed(slice_text("compare a exists\ncompare b absent\n"
                         "compare c length 3\ndelete a\nadd d 7\n"));
    fuzz_seed(slice_text("get a\nlength b\nappend c \\t\\\\\n"));
    struct buf many = {0}; /* two items a line: more than there may be */
    for (int i = 0; i < LINES_MAX; i++) {
        buf_append(&many, "compare a = 1\n", 14);
    }
    fuzz_seed(buf_slice(&many));
    buf_free(&many);
}
const struct fuzz_target fuzz_kv_txn = {"kv_txn", kv_txn_run, kv_txn_seed, 0};
