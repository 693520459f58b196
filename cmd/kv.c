/* flotilla kv: the store without files. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmd/args.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"

enum { CONNECT_MS = 10000, NAME_SIZE_MAX = SKV_KEY_SIZE_MAX - SKV_OBJECT_SIZE };

struct kv {
    struct skv_client *client;
    struct buf key;
    uint32_t timeout_ms;
};

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
    return rc == ERR_OK ? EXIT_DONE : failed(action, name, rc);
}

static int run_get(struct kv *kv, const char *name)
{
    uint64_t offset = 0, length = 1;
    while (offset < length) {
        struct skv_item item = {.kind = SKV_GET,
                                .key = buf_slice(&kv->key),
                                .offset = offset,
                                .number = SKV_DATA_SIZE_MAX / 2};
        struct skv_txn txn = {
            .items = &item, .item_count = 1, .timeout_ms = kv->timeout_ms};
        enum err rc = skv_client_run(kv->client, &txn);
        if (rc == ERR_OK) {
            rc = (enum err)txn.results[0].rc;
        }
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

static bool known(const char *action)
{
    return strcmp(action, "get") == 0 || strcmp(action, "put") == 0 ||
           strcmp(action, "append") == 0 || strcmp(action, "delete") == 0;
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
        .usage = "kv [OPTION...] get|put|append|delete KEY [VALUE]",
        .about = "Reads or changes one key. Without VALUE, put and append take "
                 "standard input (up to\n2 MiB). get writes the bytes as they "
                 "are, and fails when there is no such key.",
        .options = options,
        .positional_min = 2,
        .positional_max = 3};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    const char *action = argv[first], *name = argv[first + 1];
    if (!known(action) || timeout_ms > UINT32_MAX) {
        fprintf(stderr, "usage: flotilla %s\n", spec.usage);
        return EXIT_USAGE;
    }
    if (strlen(name) == 0 || strlen(name) > NAME_SIZE_MAX) {
        fprintf(stderr, "flotilla: a key has 1 to %d bytes\n", NAME_SIZE_MAX);
        return EXIT_USAGE;
    }
    struct kv kv = {.timeout_ms = (uint32_t)timeout_ms};
    kv.client = cluster_connect(&access, "client", CONNECT_MS);
    if (kv.client == NULL) {
        return EXIT_FAILED;
    }
    skv_key_of_name(&kv.key, slice_text(name),
                    skv_client_shard_count(kv.client));
    status = run_action(&kv, action, name,
                        first + 2 < argc ? argv[first + 2] : NULL);
    buf_free(&kv.key);
    skv_client_free(kv.client);
    return status;
}
