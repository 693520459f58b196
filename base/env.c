#include "base/env.h"

#include <stdarg.h>
#include <stdio.h>

void env_fatal(struct env *e, const char *format, ...)
{
    char words[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    e->ops->fatal(e, words);
}
