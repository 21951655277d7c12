/* A played libnvidia-ml.so.1: what pynvml needs of it, with known answers.
 *
 * The file that FAKE_NVML names is read at every call. Each line is "GPU KEY VALUE", GPU a number or * for all:
 *   gpus N                 how many there are (* only)
 *   name, uuid TEXT
 *   unsupported FUNCTION   answers "not supported"; repeatable
 *   lost_after N           the GPU is lost once its energy was read N times
 *   process PID BYTES      holds memory; repeatable; BYTES -1: not told
 *   hidden BYTES           memory that no process holds
 *   reasons, slowed_ns, clock_end, mig   numbers
 *
 * Time is played too: it goes on by TICK_MS with every reading of a GPU's energy counter, and nothing else. Power is a
 * square wave of LOW_W for HALF_MS, then HIGH_W for HALF_MS, so that every energy reading is known exactly.
 *
 * Compiled with OLD, it is a driver that lacks the newer functions.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, LOST = 15 };
enum { TICK_MS = 25, HALF_MS = 100, LOW_W = 100, HIGH_W = 300, MAX_GPUS = 2, CLOCK_MHZ = 1980, GPM_METRICS = 477 };
#define TOTAL_BYTES (80ULL << 30)

typedef struct { int number; unsigned long long ticks, gpm; } gpu_t;
static gpu_t gpus[MAX_GPUS + 1] = {{0, 0, 0}, {1, 0, 0}, {MAX_GPUS, 0, 0}}; /* the last one is a MIG slice */
static int initialised;

/* The value of the nth line of a key; NULL if there is none. */
static const char *line(int gpu, const char *key, int nth)
{
    static char text[256];
    char whose[16], what[64];
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    const char *found = NULL;
    while (file && !found && fscanf(file, "%15s %63s %255[^\n]", whose, what, text) == 3) {
        int matches = whose[0] == '*' || atoi(whose) == gpu;
        if (matches && !strcmp(what, key) && nth-- == 0)
            found = text;
    }
    if (file)
        fclose(file);
    return found;
}

static long long number(int gpu, const char *key, long long otherwise)
{
    const char *told = line(gpu, key, 0);
    return told ? atoll(told) : otherwise;
}

static int refuses(gpu_t *gpu, const char *function)
{
    long long lost_after = number(gpu->number, "lost_after", -1);
    if (!initialised)
        return UNINITIALIZED;
    if (lost_after >= 0 && gpu->ticks >= (unsigned long long)lost_after)
        return LOST;
    for (int nth = 0;; nth++) {
        const char *told = line(gpu->number, "unsupported", nth);
        if (!told)
            return SUCCESS;
        if (!strcmp(told, function))
            return NOT_SUPPORTED;
    }
}

#define ANSWER(gpu) do { int refused = refuses(gpu, __func__); if (refused) return refused; } while (0)

static unsigned long long millijoules(unsigned long long ms)
{
    unsigned long long whole = ms / (2 * HALF_MS), rest = ms % (2 * HALF_MS);
    unsigned long long low = rest < HALF_MS ? rest : HALF_MS, high = rest - low;
    return whole * HALF_MS * (LOW_W + HIGH_W) + low * LOW_W + high * HIGH_W;
}

/* The library itself. */

int nvmlInitWithFlags(unsigned flags)
{
    initialised = 1;
    for (int i = 0; i <= MAX_GPUS; i++)
        gpus[i].ticks = gpus[i].gpm = 0;
    return SUCCESS;
}

int nvmlShutdown(void) { initialised = 0; return SUCCESS; }

const char *nvmlErrorString(int error) { return "an error that is played"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    snprintf(version, length, "FAKE.1");
    return initialised ? SUCCESS : UNINITIALIZED;
}

/* Which GPUs there are. */

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = number(0, "gpus", 1);
    return initialised ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu_t **gpu)
{
    if (index >= number(0, "gpus", 1))
        return INVALID_ARGUMENT;
    *gpu = &gpus[index];
    ANSWER(*gpu);
    return SUCCESS;
}

static void name_of(gpu_t *gpu, const char *key, const char *form, char *text, unsigned length)
{
    const char *told = line(gpu->number, key, 0);
    told ? snprintf(text, length, "%s", told) : snprintf(text, length, form, gpu->number);
}

int nvmlDeviceGetUUID(gpu_t *gpu, char *uuid, unsigned length)
{
    ANSWER(gpu);
    name_of(gpu, "uuid", gpu->number == MAX_GPUS ? "MIG-%d0000000-0000" : "GPU-%d0000000-0000", uuid, length);
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, gpu_t **gpu)
{
    char own[96];
    for (int i = 0; i <= MAX_GPUS; i++) {
        if (i < MAX_GPUS && i >= number(0, "gpus", 1))
            continue;
        *gpu = &gpus[i];
        if (!nvmlDeviceGetUUID(*gpu, own, sizeof own) && !strcmp(own, uuid))
            return SUCCESS;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(gpu_t *gpu, char *name, unsigned length)
{
    ANSWER(gpu);
    name_of(gpu, "name", "FAKE H100", name, length);
    return SUCCESS;
}

/* What one does. */

int nvmlDeviceGetPowerUsage(gpu_t *gpu, unsigned *milliwatts)
{
    ANSWER(gpu);
    *milliwatts = 1000 * (gpu->ticks * TICK_MS / HALF_MS % 2 ? HIGH_W : LOW_W);
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementLimit(gpu_t *gpu, unsigned *milliwatts) { ANSWER(gpu); *milliwatts = 700000; return SUCCESS; }

int nvmlDeviceGetUtilizationRates(gpu_t *gpu, unsigned *rates)
{
    ANSWER(gpu);
    rates[0] = 80 + gpu->number;
    rates[1] = 40;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(gpu_t *gpu, int kind, unsigned *mhz)
{
    ANSWER(gpu);
    *mhz = kind == 1 ? (gpu->ticks > 1 ? number(gpu->number, "clock_end", CLOCK_MHZ) : CLOCK_MHZ) : 2600;
    return SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(gpu_t *gpu, int kind, unsigned *mhz) { ANSWER(gpu); *mhz = CLOCK_MHZ; return SUCCESS; }

int nvmlDeviceGetCurrentClocksThrottleReasons(gpu_t *gpu, unsigned long long *reasons)
{
    ANSWER(gpu);
    *reasons = number(gpu->number, "reasons", 0);
    return SUCCESS;
}

int nvmlDeviceGetTemperature(gpu_t *gpu, int sensor, unsigned *celsius) { ANSWER(gpu); *celsius = 55; return SUCCESS; }

int nvmlDeviceGetPcieThroughput(gpu_t *gpu, int counter, unsigned *kb) { ANSWER(gpu); *kb = counter ? 200 : 100; return SUCCESS; }

int nvmlDeviceGetEccMode(gpu_t *gpu, unsigned *now, unsigned *pending) { ANSWER(gpu); *now = *pending = 1; return SUCCESS; }

int nvmlDeviceGetTotalEccErrors(gpu_t *gpu, int kind, int counter, unsigned long long *errors)
{
    ANSWER(gpu);
    *errors = kind ? 0 : 3;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(gpu_t *gpu, unsigned *now, unsigned *pending)
{
    ANSWER(gpu);
    *now = *pending = number(gpu->number, "mig", 0);
    return SUCCESS;
}

/* Memory, and who holds it. */

static unsigned long long held(gpu_t *gpu)
{
    unsigned long long bytes = number(gpu->number, "hidden", 0);
    const char *told;
    for (int nth = 0; (told = line(gpu->number, "process", nth)); nth++) {
        long long size = atoll(strchr(told, ' '));
        bytes += size < 0 ? 0 : size;
    }
    return bytes;
}

int nvmlDeviceGetMemoryInfo(gpu_t *gpu, unsigned long long *memory)
{
    ANSWER(gpu);
    memory[0] = TOTAL_BYTES;
    memory[2] = held(gpu);
    memory[1] = TOTAL_BYTES - memory[2];
    return SUCCESS;
}

#ifndef OLD

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { unsigned field, scope; long long stamp, latency; int type, error; unsigned long long value; } field_t;
typedef struct { unsigned id; int error; double value; const char *words[3]; } metric_t;
typedef struct { unsigned version, count; unsigned long long *one, *other; metric_t metrics[GPM_METRICS]; } metrics_t;

int nvmlDeviceGetTotalEnergyConsumption(gpu_t *gpu, unsigned long long *energy)
{
    ANSWER(gpu);
    *energy = millijoules(++gpu->ticks * TICK_MS);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(gpu_t *gpu, memory_v2_t *memory)
{
    ANSWER(gpu);
    if (memory->version != 0x02000028)
        return INVALID_ARGUMENT;
    memory->total = TOTAL_BYTES;
    memory->reserved = 500ULL << 20;
    memory->used = held(gpu);
    memory->free = TOTAL_BYTES - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(gpu_t *gpu, unsigned *count, process_t *processes)
{
    const char *told;
    unsigned there = 0, room = *count;
    ANSWER(gpu);
    for (; (told = line(gpu->number, "process", there)); there++)
        if (there < room) {
            long long size = atoll(strchr(told, ' '));
            processes[there] = (process_t){atoi(told), size < 0 ? ~0ULL : size, ~0U, ~0U};
        }
    *count = there;
    return there > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(gpu_t *gpu, unsigned *count, process_t *processes)
{
    ANSWER(gpu);
    *count = 0;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(gpu_t *gpu, unsigned long long *reasons)
{
    ANSWER(gpu);
    return nvmlDeviceGetCurrentClocksThrottleReasons(gpu, reasons);
}

/* The power cap's counter, which goes on with every tick; the others are not there. */
int nvmlDeviceGetFieldValues(gpu_t *gpu, int count, field_t *values)
{
    ANSWER(gpu);
    for (int i = 0; i < count; i++) {
        values[i].error = values[i].field == 74 ? SUCCESS : NOT_SUPPORTED;
        values[i].value = gpu->ticks * number(gpu->number, "slowed_ns", 0);
    }
    return SUCCESS;
}

int nvmlGpmQueryDeviceSupport(gpu_t *gpu, unsigned *support)
{
    ANSWER(gpu);
    support[1] = gpu->number == 0;
    return SUCCESS;
}

static int samples_out;

int nvmlGpmSampleAlloc(unsigned long long **sample) { samples_out++; *sample = calloc(1, sizeof **sample); return SUCCESS; }

int nvmlGpmSampleFree(unsigned long long *sample) { samples_out--; free(sample); return SUCCESS; }

int fake_samples_out(void) { return samples_out; }

int nvmlGpmSampleGet(gpu_t *gpu, unsigned long long *sample)
{
    ANSWER(gpu);
    *sample = ++gpu->gpm;
    return SUCCESS;
}

/* A metric is ten times its number, plus how many samples lie between: 1 if they are neighbours in the right order. */
int nvmlGpmMetricsGet(metrics_t *request)
{
    for (unsigned i = 0; i < request->count; i++) {
        metric_t *metric = &request->metrics[i];
        metric->error = metric->id == 5 ? NOT_SUPPORTED : SUCCESS;
        metric->value = 10.0 * metric->id + (double)*request->other - (double)*request->one;
    }
    return SUCCESS;
}

#endif
