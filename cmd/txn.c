/* flotilla kv txn: a minitransaction from standard input, one item a line. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "cmd/cmd.h"
#include "cmd/kv_int.h"

enum { LINES_MAX = SKV_ITEMS_MAX, LINE_SIZE_MAX = 4 << 20 };

struct script {
    struct skv_item items[SKV_ITEMS_MAX];
    uint32_t lines[SKV_ITEMS_MAX]; /* where an item came from */
    char *texts[LINES_MAX];        /* the lines, for what is printed */
    uint32_t item_count, text_count;
    uint32_t shard_count;
    struct arena arena;
};

/* The next word of a line, ended in place; the rest begins after one space. */
static char *word(char **rest)
{
    char *at = *rest + strspn(*rest, " \t");
    size_t size = strcspn(at, " \t");
    *rest = at[size] == 0 ? at + size : at + size + 1;
    at[size] = 0;
    return at;
}

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* \n \t \\ and \xHH in place. False: another escape. */
static bool unescape(char *text, struct slice *out)
{
    char *to = text;
    for (const char *from = text; *from != 0;) {
        if (*from != '\\') {
            *to++ = *from++;
        } else if (from[1] == 'n' || from[1] == 't' || from[1] == '\\') {
            *to++ = from[1] == 'n' ? '\n' : from[1] == 't' ? '\t' : '\\';
            from += 2;
        } else if (from[1] == 'x' && hex(from[2]) >= 0 && hex(from[3]) >= 0) {
            *to++ = (char)(hex(from[2]) * 16 + hex(from[3]));
            from += 4;
        } else {
            return false;
        }
    }
    *out = (struct slice){(uint8_t *)text, (size_t)(to - text)};
    return true;
}

static bool add(struct script *s, const char *name, struct skv_item item)
{
    if (s->item_count == SKV_ITEMS_MAX || name[0] == 0 ||
        strlen(name) > KV_NAME_SIZE_MAX) {
        return false;
    }
    struct buf key = {0};
    skv_key_of_name(&key, slice_text(name), s->shard_count);
    item.key = arena_copy(&s->arena, buf_slice(&key));
    buf_free(&key);
    s->lines[s->item_count] = s->text_count - 1;
    s->items[s->item_count++] = item;
    return true;
}

/* "exists", "absent", "= VALUE" or "length N" after "compare KEY". */
static bool add_compare(struct script *s, const char *name, char *rest)
{
    const char *how = word(&rest);
    uint64_t number = 0;
    struct slice value;
    if (strcmp(how, "exists") == 0 || strcmp(how, "absent") == 0) {
        uint8_t kind = how[0] == 'e' ? SKV_CMP_EXISTS : SKV_CMP_ABSENT;
        return *rest == 0 && add(s, name, (struct skv_item){.kind = kind});
    }
    if (strcmp(how, "length") == 0) {
        return args_number(rest, 0, SKV_VALUE_SIZE_MAX, &number) &&
               add(s, name,
                   (struct skv_item){.kind = SKV_CMP_LENGTH, .number = number});
    }
    return strcmp(how, "=") == 0 && unescape(rest, &value) &&
           add(s, name,
               (struct skv_item){.kind = SKV_CMP_LENGTH,
                                 .number = value.size}) &&
           add(s, name,
               (struct skv_item){.kind = SKV_CMP_BYTES, .data = value});
}

static bool add_line(struct script *s, char *rest)
{
    static const struct {
        const char *verb;
        uint8_t kind;
        bool takes_value;
    } verbs[] = {
        {"get", SKV_GET, false},       {"length", SKV_LENGTH, false},
        {"delete", SKV_DELETE, false}, {"put", SKV_PUT, true},
        {"append", SKV_APPEND, true},
    };
    const char *verb = word(&rest);
    const char *name = word(&rest);
    if (strcmp(verb, "compare") == 0) {
        return add_compare(s, name, rest);
    }
    struct skv_item item = {0};
    if (strcmp(verb, "add") == 0) {
        item.kind = SKV_ADD;
        return args_number(rest, 0, UINT64_MAX, &item.number) &&
               add(s, name, item);
    }
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
        if (strcmp(verb, verbs[i].verb) == 0) {
            item.kind = verbs[i].kind;
            item.number = item.kind == SKV_GET ? SKV_INLINE_SIZE_MAX : 0;
            return (verbs[i].takes_value ? unescape(rest, &item.data)
                                         : *rest == 0) &&
                   add(s, name, item);
        }
    }
    return false;
}

static bool read_script(struct script *s, FILE *from)
{
    char *line = NULL;
    size_t capacity = 0;
    bool good = true;
    for (ssize_t size; good && (size = getline(&line, &capacity, from)) > 0;) {
        size_t length = strcspn(line, "\n");
        /* A zero byte would hide the rest; \x00 stands for one. */
        bool whole = strlen(line) == (size_t)size;
        line[length] = 0;
        if (whole && (length == 0 || line[0] == '#')) {
            continue;
        }
        good = whole && size < LINE_SIZE_MAX && s->text_count < LINES_MAX;
        if (good) {
            s->texts[s->text_count++] = mem_strdup(line);
            struct slice copy = arena_copy(
                &s->arena, (struct slice){(uint8_t *)line, strlen(line) + 1});
            good = add_line(s, (char *)(uintptr_t)copy.data);
        }
        if (!good) {
            fprintf(stderr,
                    "flotilla: kv txn does not understand the line '%.200s' "
                    "(at most %d lines; --help shows them)\n",
                    line, LINES_MAX);
        }
    }
    free(line);
    if (good && ferror(from) != 0) {
        fprintf(stderr, "flotilla: cannot read standard input: %s\n",
                strerror(errno));
        good = false;
    }
    return good;
}

static void print_results(const struct script *s, const struct skv_txn *txn)
{
    for (uint32_t i = 0; i < s->item_count; i++) {
        const struct skv_item *item = &s->items[i];
        const struct skv_result *r = &txn->results[i];
        const char *text = s->texts[s->lines[i]];
        if (item->kind == SKV_GET && r->rc == ERR_OK) {
            printf("%s: ", text);
            fwrite(r->data.data, 1, r->data.size, stdout);
            putchar('\n');
        } else if (item->kind == SKV_GET || item->kind == SKV_LENGTH) {
            printf("%s: ", text);
            if (r->rc == ERR_OK) {
                printf("%llu\n", (unsigned long long)r->number);
            } else {
                printf("(no such key)\n");
            }
        } else if (item->kind == SKV_APPEND || item->kind == SKV_ADD) {
            printf("%s: %s %llu\n", text, item->kind == SKV_ADD ? "now" : "at",
                   (unsigned long long)r->number);
        }
    }
}

static int run_script(struct script *s, const struct kv *kv)
{
    struct skv_txn txn = {.items = s->items,
                          .item_count = s->item_count,
                          .timeout_ms = kv->timeout_ms};
    enum err rc = skv_client_run(kv->client, &txn);
    if (rc == ERR_OK) {
        print_results(s, &txn);
    } else if (rc == ERR_CONFLICT && txn.failed < s->item_count) {
        fprintf(stderr,
                "flotilla: nothing was done, as this does not hold: "
                "%s\n",
                s->texts[s->lines[txn.failed]]);
    } else {
        char words[256];
        skv_txn_explain(&txn, words, sizeof words);
        fprintf(stderr, "flotilla: the transaction failed: %s\n", words);
    }
    arena_free(&txn.arena);
    return rc == ERR_OK ? EXIT_DONE : EXIT_FAILED;
}

static void script_free(struct script *s)
{
    for (uint32_t i = 0; i < s->text_count; i++) {
        mem_free(s->texts[i]);
    }
    arena_free(&s->arena);
    mem_free(s);
}

int kv_txn(const struct kv *kv)
{
    struct script *s = mem_alloc(sizeof *s);
    s->shard_count = skv_client_shard_count(kv->client);
    int status = EXIT_USAGE;
    bool good = read_script(s, stdin);
    if (good && s->item_count == 0) {
        fprintf(stderr, "flotilla: the transaction is empty: kv txn takes "
                        "lines such as 'compare KEY absent' or 'put KEY VALUE' "
                        "from standard input (--help shows them all)\n");
    } else if (good) {
        status = run_script(s, kv);
    }
    script_free(s);
    return status;
}
