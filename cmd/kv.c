/* flotilla kv: the store without files. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "cmd/kv_int.h"

static int unanswered(const char *what, const char *name,
                      const struct skv_txn *txn)
{
    char words[256];
    skv_txn_explain(txn, words, sizeof words);
    fprintf(stderr, "flotilla: cannot %s '%s': %s\n", what, name, words);
    return EXIT_FAILED;
}

static int failed(const char *what, const char *name, enum err rc)
{
    fprintf(stderr, "flotilla: cannot %s '%s': %s\n", what, name, err_text(rc));
    return EXIT_FAILED;
}

/* All of standard input, up to what one request may carry. */
static bool read_input(struct buf *value)
{
    for (;;) {
        uint8_t chunk[65536];
        ssize_t size = read(STDIN_FILENO, chunk, sizeof chunk);
        if (size <= 0) {
            return size == 0;
        }
        buf_append(value, chunk, (size_t)size);
        if (value->size > SKV_DATA_SIZE_MAX) {
            return false;
        }
    }
}

static int run_write(struct kv *kv, const char *action, const char *name,
                     uint8_t kind, struct slice value)
{
    struct skv_item item = {
        .kind = kind, .key = buf_slice(&kv->key), .data = value};
    struct skv_txn txn = {
        .items = &item, .item_count = 1, .timeout_ms = kv->timeout_ms};
    enum err rc = skv_client_run(kv->client, &txn);
    arena_free(&txn.arena);
    return rc == ERR_OK ? EXIT_DONE : unanswered(action, name, &txn);
}

/* What one put may write is read at one moment; what is longer, in pieces. */
static int run_get(struct kv *kv, const char *name)
{
    uint64_t offset = 0, length = 1;
    while (offset < length) {
        struct skv_item item = {.kind = SKV_GET,
                                .key = buf_slice(&kv->key),
                                .offset = offset,
                                .number = SKV_DATA_SIZE_MAX};
        struct skv_txn txn = {
            .items = &item, .item_count = 1, .timeout_ms = kv->timeout_ms};
        enum err rc = skv_client_run(kv->client, &txn);
        if (rc != ERR_OK) {
            arena_free(&txn.arena);
            return unanswered("get", name, &txn);
        }
        rc = (enum err)txn.results[0].rc;
        if (rc != ERR_OK) {
            arena_free(&txn.arena);
            return failed("get", name, rc);
        }
        struct slice data = txn.results[0].data;
        length = txn.results[0].number;
        offset += data.size;
        bool wrote = fwrite(data.data, 1, data.size, stdout) == data.size;
        bool ended = data.size == 0;
        arena_free(&txn.arena);
        if (!wrote) {
            return failed("write out the value of", name, ERR_IO);
        }
        if (ended) {
            break;
        }
    }
    return fflush(stdout) == 0 ? EXIT_DONE : EXIT_FAILED;
}

static int run_action(struct kv *kv, const char *action, const char *name,
                      const char *value)
{
    if (strcmp(action, "get") == 0) {
        return run_get(kv, name);
    }
    if (strcmp(action, "delete") == 0) {
        return run_write(kv, action, name, SKV_DELETE, slice_text(""));
    }
    struct buf input = {0};
    if (value == NULL && !read_input(&input)) {
        buf_free(&input);
        return failed("read from standard input a value (of at most 2 MiB) for",
                      name, ERR_TOOBIG);
    }
    uint8_t kind = strcmp(action, "put") == 0 ? SKV_PUT : SKV_APPEND;
    int status =
        run_write(kv, action, name, kind,
                  value != NULL ? slice_text(value) : buf_slice(&input));
    buf_free(&input);
    return status;
}

static bool known(const char *action, int words)
{
    if (strcmp(action, "txn") == 0) {
        return words == 1;
    }
    bool reads = strcmp(action, "get") == 0 || strcmp(action, "delete") == 0;
    bool writes = strcmp(action, "put") == 0 || strcmp(action, "append") == 0;
    return (reads && words == 2) || (writes && (words == 2 || words == 3));
}

static int run_key(struct kv *kv, const char *action, const char *name,
                   const char *value)
{
    if (strlen(name) == 0 || strlen(name) > KV_NAME_SIZE_MAX) {
        fprintf(stderr, "flotilla: a key has 1 to %d bytes\n",
                KV_NAME_SIZE_MAX);
        return EXIT_USAGE;
    }
    skv_key_of_name(&kv->key, slice_text(name),
                    skv_client_shard_count(kv->client));
    int status = run_action(kv, action, name, value);
    buf_free(&kv->key);
    return status;
}

int cmd_kv(int argc, char **argv)
{
    struct cluster_access access = {0};
    uint64_t timeout_ms = 10000;
    const struct arg_option options[] = {
        CLUSTER_ACCESS_OPTIONS(&access),
        {"timeout", 't', ARG_NUMBER, &timeout_ms, "MS",
         "give up after so many milliseconds (10000; 0: never)"},
        {0}};
    const struct arg_spec spec = {
        .usage = "kv [OPTION...] get|put|append|delete KEY [VALUE] | txn",
        .about =
            "Reads or changes keys. Without VALUE, put and append take "
            "standard input (up to\n2 MiB). get writes the bytes as they are, "
            "and fails when there is no such key.\n\n"
            "txn takes lines from standard input and does all of them at one "
            "moment, or none:\n"
            "  compare KEY = VALUE | exists | absent | length N\n"
            "  get KEY | length KEY                   values up to 4000 bytes, "
            "from before the writes\n"
            "  put KEY VALUE | append KEY VALUE | delete KEY | add KEY N\n"
            "VALUE is the rest of the line; \\n \\t \\\\ \\xHH stand for "
            "bytes. # begins a comment.",
        .options = options,
        .positional_min = 1,
        .positional_max = 3};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    const char *action = argv[first];
    if (!known(action, argc - first) || timeout_ms > UINT32_MAX) {
        fprintf(stderr, "usage: flotilla %s\n", spec.usage);
        return EXIT_USAGE;
    }
    struct kv kv = {.timeout_ms = (uint32_t)timeout_ms};
    kv.client = cluster_connect(&access, "client", kv.timeout_ms);
    if (kv.client == NULL) {
        return EXIT_FAILED;
    }
    status = strcmp(action, "txn") == 0
                 ? kv_txn(&kv)
                 : run_key(&kv, action, argv[first + 1],
                           first + 2 < argc ? argv[first + 2] : NULL);
    skv_client_free(kv.client);
    return status;
}
