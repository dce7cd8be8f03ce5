/* A pretended NVIDIA driver: the functions of libnvidia-ml.so.1 that pynvml asks for, over a world that tests set.

   It is loaded by the real nvidia-ml-py, so its types, sizes and version words are those of nvml.h. Anything that a
   test wants of a GPU is a number by a key (the table NUMBERS below); a number that is absent (NaN) is not supported
   by that GPU, and the calls that would give it say so.

   A GPU is addressed by its index; the MIG device m of GPU g by g + 16 * (m + 1). -1 is the driver itself, or all.

   Environment, read when the library is loaded and on fake_reset():
     FAKE_NVML_GPUS=4                number of GPUs; 2 is a Hopper and a Turing, any other number is Hoppers
     FAKE_NVML_DRIVER=575.51.03      version of the driver, which decides which fields and functions exist
     FAKE_NVML_FAULTS=lost:1,...     orders, see below
     FAKE_NVML_XID=1:79              an XID error, as the order xid:1:79; several by commas
     FAKE_NVML_REALTIME=1            the clock is the real one: energy, samples and counters move by themselves
     FAKE_NVML_CONTROL=path          a file of orders, obeyed once each time it changes

   Orders, separated by commas or new lines. Those of the control file replace all faults that were there; an xid
   waits until somebody has registered for events of that GPU:
     lost:GPU   err:FUNCTION:CODE[:GPU]   hang:FUNCTION:MILLISECONDS[:GPU]   initfail:CODE   xid:GPU:CODE
     set:GPU:KEY:NUMBER   none:GPU:KEY   text:GPU:KEY:TEXT   field:GPU:ID:CODE   advance:SECONDS   reload */

#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>

/* ---- what nvml.h says ---------------------------------------------------------------------------------------- */

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;
typedef void *nvmlEventSet_t;
typedef void *nvmlGpmSample_t;

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15, INSUFFICIENT_RESOURCES = 23,
    ARGUMENT_VERSION_MISMATCH = 25,
};
enum { VALUE_DOUBLE, VALUE_UINT, VALUE_ULONG, VALUE_ULONGLONG, VALUE_SLONGLONG, VALUE_SINT };
enum { EVENT_XID = 8 };
#define NOT_AVAILABLE 0xFFFFFFFFu

union value { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; int si; };
struct utilization { unsigned gpu, memory; };
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
struct pci_info {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};
struct temperature { unsigned version, sensor; int celsius; };
struct margin { unsigned version; int celsius; };
struct fan_speed { unsigned version, fan, rpm; };
struct sample { unsigned long long timestamp; union value value; };
struct field_value {
    unsigned id, scope;
    long long timestamp, latency;
    int type;
    nvmlReturn_t code;
    union value value;
};
struct process_info { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
struct process_utilization { unsigned pid; unsigned long long timestamp; unsigned sm, memory, encoder, decoder; };
struct event_data {
    nvmlDevice_t device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};
struct gpm_metric {
    unsigned id;
    nvmlReturn_t code;
    double value;
    struct { const char *short_name, *long_name, *unit; } info;
};
struct gpm_metrics { unsigned version, count; nvmlGpmSample_t first, second; struct gpm_metric metrics[]; };
struct gpm_support { unsigned version, supported; };
struct attributes {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    unsigned long long memory_mib;
};

#define SIZE(what, bytes) _Static_assert(sizeof(what) == bytes, "not the size of nvml.h")
SIZE(struct memory_v2, 40);
SIZE(struct pci_info, 68);
SIZE(struct temperature, 12);
SIZE(struct margin, 8);
SIZE(struct fan_speed, 12);
SIZE(struct sample, 16);
SIZE(struct field_value, 40);
SIZE(struct process_info, 24);
SIZE(struct process_utilization, 32);
SIZE(struct event_data, 32);
SIZE(struct gpm_metric, 40);
SIZE(struct attributes, 40);

/* The version word of a struct: its size, and the number of the version in the highest byte. */
#define VERSION(what, number) ((unsigned)(sizeof(what) | (number) << 24))

/* ---- the world ----------------------------------------------------------------------------------------------- */

#define N NAN
#define MIB 1048576.0
#define GIB (1024 * MIB)

/* Each number a GPU has, on three models. Counters of which a rate or a power is known move with the clock. */
#define NUMBERS(X)                                                                                                    \
    /* key                      H100            RTX 2080      Tesla T4 */                                             \
    X(architecture,             9,              6,            6)                                                      \
    X(capability_major,         9,              7,            7)                                                      \
    X(capability_minor,         0,              5,            5)                                                      \
    X(brand,                    14,             5,            14)                                                     \
    X(persistence,              1,              0,            1)                                                      \
    X(pci_device,               0x233010DE,     0x1E8210DE,   0x1EB810DE)                                             \
    X(utilization,              60,             25,           30)                                                     \
    X(memory_utilization,       35,             10,           15)                                                     \
    X(encoder,                  5,              12,           4)                                                      \
    X(decoder,                  7,              0,            6)                                                      \
    X(memory_total,             80 * GIB,       8 * GIB,      15 * GIB)                                               \
    X(memory_reserved,          512 * MIB,      256 * MIB,    448 * MIB)                                              \
    X(memory_used,              20 * GIB,       1 * GIB,      2 * GIB)                                                \
    X(bar1_total,               128 * GIB,      256 * MIB,    256 * MIB)                                              \
    X(bar1_used,                1 * GIB,        16 * MIB,     4 * MIB)                                                \
    X(temperature,              45,             62,           55)                                                     \
    X(memory_temperature,       52,             N,            N)                                                      \
    X(margin_temperature,       42,             N,            N)                                                      \
    X(threshold_shutdown,       N,              100,          96)                                                     \
    X(threshold_slowdown,       N,              97,           93)                                                     \
    X(threshold_memory_max,     N,              N,            N)                                                      \
    X(threshold_gpu_max,        N,              88,           85)                                                     \
    X(tlimit_shutdown,          -8,             N,            N)                                                      \
    X(tlimit_slowdown,          -2,             N,            N)                                                      \
    X(tlimit_memory_max,        1,              N,            N)                                                      \
    X(tlimit_gpu_max,           0,              N,            N)                                                      \
    X(power_mw,                 350500,         120250,       40100)                                                  \
    X(power_average_mw,         350250,         N,            N)                                                      \
    X(power_instant_mw,         351000,         120250,       40100)                                                  \
    X(power_limit_enforced_mw,  700000,         215000,       70000)                                                  \
    X(power_limit_mw,           700000,         225000,       70000)                                                  \
    X(power_limit_default_mw,   700000,         225000,       70000)                                                  \
    X(power_limit_min_mw,       200000,         105000,       60000)                                                  \
    X(power_limit_max_mw,       700000,         292000,       70000)                                                  \
    X(energy_mj,                5000000,        3000000,      1000000)                                                \
    X(clock_graphics,           1755,           1515,         1005)                                                   \
    X(clock_sm,                 1740,           1515,         1005)                                                   \
    X(clock_memory,             2619,           6800,         5000)                                                   \
    X(clock_video,              1545,           1410,         945)                                                    \
    X(clock_max_graphics,       1980,           2100,         1590)                                                   \
    X(clock_max_sm,             1980,           2100,         1590)                                                   \
    X(clock_max_memory,         2619,           7000,         5001)                                                   \
    X(clock_max_video,          1545,           1950,         1470)                                                   \
    X(event_reasons,            0x0,            0x1,          0x0)                                                    \
    X(event_reasons_supported,  0x1FF,          0x1FF,        0x1FF)                                                  \
    X(throttle_power_ns,        1000000000,     2000000000,   0)                                                      \
    X(throttle_thermal_ns,      3000000000,     0,            0)                                                      \
    X(throttle_sync_boost_ns,   0,              0,            0)                                                      \
    X(throttle_board_limit_ns,  0,              0,            0)                                                      \
    X(throttle_low_util_ns,     0,              0,            0)                                                      \
    X(throttle_reliability_ns,  0,              0,            0)                                                      \
    X(throttle_app_clocks_ns,   0,              0,            0)                                                      \
    X(throttle_base_clocks_ns,  0,              0,            0)                                                      \
    X(throttle_sw_thermal_ns,   2000000000,     N,            N)                                                      \
    X(throttle_hw_thermal_ns,   1000000000,     N,            N)                                                      \
    X(throttle_power_brake_ns,  500000000,      N,            N)                                                      \
    X(power_smoothing,          N,              N,            N)                                                      \
    X(fans,                     0,              1,            0)                                                      \
    X(fan_speed,                N,              41,           N)                                                      \
    X(fan_rpm,                  N,              1540,         N)                                                      \
    X(pcie_generation,          5,              1,            3)                                                      \
    X(pcie_generation_max,      5,              3,            3)                                                      \
    X(pcie_width,               16,             8,            16)                                                     \
    X(pcie_width_max,           16,             16,           16)                                                     \
    X(pcie_tx_bytes,            1000000,        N,            N)                                                      \
    X(pcie_rx_bytes,            2000000,        N,            N)                                                      \
    X(pcie_tx_rate,             300000000,      10000000,     20000000)                                               \
    X(pcie_rx_rate,             500000000,      30000000,     40000000)                                               \
    X(pcie_bits,                32,             32,           32)                                                     \
    X(pcie_replays,             3,              0,            0)                                                      \
    X(nvlink_links,             18,             N,            N)                                                      \
    X(nvlink_tx_kib,            18000,          N,            N)                                                      \
    X(nvlink_rx_kib,            36000,          N,            N)                                                      \
    X(nvlink_tx_bytes,          N,              N,            N)                                                      \
    X(nvlink_rx_bytes,          N,              N,            N)                                                      \
    X(nvlink_tx_rate,           1048576000,     N,            N)                                                      \
    X(nvlink_rx_rate,           2097152000,     N,            N)                                                      \
    X(ecc_mode,                 1,              N,            1)                                                      \
    X(ecc_corrected_volatile,   4,              N,            1)                                                      \
    X(ecc_uncorrected_volatile, 0,              N,            0)                                                      \
    X(ecc_corrected_aggregate,  40,             N,            11)                                                     \
    X(ecc_uncorrected_aggregate, 2,             N,            1)                                                      \
    X(remapped_corrected,       1,              N,            N)                                                      \
    X(remapped_uncorrected,     2,              N,            N)                                                      \
    X(remapped_pending,         0,              N,            N)                                                      \
    X(remapped_failure,         0,              N,            N)                                                      \
    X(retired_single,           N,              N,            1)                                                      \
    X(retired_double,           N,              N,            2)                                                      \
    X(retired_pending,          N,              N,            0)                                                      \
    X(performance_state,        0,              2,            0)                                                      \
    X(recovery_action,          0,              N,            N)                                                      \
    X(event_types,              0x109F,         0x98,         0x9F)                                                   \
    X(power_samples,            120,            120,          120)                                                    \
    X(utilization_samples,      71,             71,           71)                                                     \
    X(memory_samples,           71,             71,           71)                                                     \
    X(encoder_samples,          71,             71,           71)                                                     \
    X(decoder_samples,          71,             71,           71)                                                     \
    X(idle_samples,             1,              1,            1)                                                      \
    X(gpm_graphics,             58.5,           N,            N)                                                      \
    X(gpm_sm,                   55.5,           N,            N)                                                      \
    X(gpm_occupancy,            33.25,          N,            N)                                                      \
    X(gpm_integer,              8.5,            N,            N)                                                      \
    X(gpm_tensor,               21.5,           N,            N)                                                      \
    X(gpm_hmma,                 20.5,           N,            N)                                                      \
    X(gpm_dram,                 30.75,          N,            N)                                                      \
    X(gpm_fp64,                 0,              N,            N)                                                      \
    X(gpm_fp32,                 12.5,           N,            N)                                                      \
    X(gpm_fp16,                 4.5,            N,            N)                                                      \
    X(mig_mode,                 0,              N,            N)                                                      \
    X(mig_pending,              N,              N,            N)                                                      \
    X(mig_max,                  7,              N,            N)                                                      \
    X(gpu_instance,             N,              N,            N)                                                      \
    X(compute_instance,         N,              N,            N)                                                      \
    X(multiprocessors,          132,            46,           40)                                                     \
    X(gpu_slices,               N,              N,            N)                                                      \
    X(compute_slices,           N,              N,            N)

enum key {
#define X(key, h100, rtx, t4) key,
    NUMBERS(X)
#undef X
    KEYS
};
static const char *const KEY_NAMES[] = {
#define X(key, h100, rtx, t4) #key,
    NUMBERS(X)
#undef X
};
enum model { H100, RTX_2080, TESLA_T4, MODELS };
static const char *const MODEL_NAMES[] = {"NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 2080", "Tesla T4"};
static const double MODEL_NUMBERS[KEYS][MODELS] = {
#define X(key, h100, rtx, t4) {h100, rtx, t4},
    NUMBERS(X)
#undef X
};

enum { GPUS = 16, MIGS = 7, DEVICES = GPUS * (1 + MIGS), DEPTH = 120, PROCESSES = 16, OVERRIDES = 32 };

/* The kinds of samples by nvmlSamplingType_t: total power, GPU, memory, encoder and decoder utilization. */
enum { SAMPLINGS = 5 };
static const struct { enum key value, depth; uint64_t step_us; } SAMPLING[SAMPLINGS] = {
    {power_mw, power_samples, 20000},     {utilization, utilization_samples, 200000},
    {memory_utilization, memory_samples, 200000}, {encoder, encoder_samples, 200000},
    {decoder, decoder_samples, 200000},
};

/* The metrics of GPM by id: the mean of a number in percent, or of a rate in MiB/s, between two samples. */
static const struct { unsigned id; enum key key; double scale; const char *name, *unit; } GPM[] = {
    {1, gpm_graphics, 1, "GRAPHICS_UTIL", "%"},   {2, gpm_sm, 1, "SM_UTIL", "%"},
    {3, gpm_occupancy, 1, "SM_OCCUPANCY", "%"},   {4, gpm_integer, 1, "INTEGER_UTIL", "%"},
    {5, gpm_tensor, 1, "ANY_TENSOR_UTIL", "%"},   {7, gpm_hmma, 1, "HMMA_TENSOR_UTIL", "%"},
    {10, gpm_dram, 1, "DRAM_BW_UTIL", "%"},       {11, gpm_fp64, 1, "FP64_UTIL", "%"},
    {12, gpm_fp32, 1, "FP32_UTIL", "%"},          {13, gpm_fp16, 1, "FP16_UTIL", "%"},
    {20, pcie_tx_rate, MIB, "PCIE_TX_PER_SEC", "MiB/s"},  {21, pcie_rx_rate, MIB, "PCIE_RX_PER_SEC", "MiB/s"},
    {60, nvlink_rx_rate, MIB, "NVLINK_TOTAL_RX_PER_SEC", "MiB/s"},
    {61, nvlink_tx_rate, MIB, "NVLINK_TOTAL_TX_PER_SEC", "MiB/s"},
};
enum { GPM_METRICS = sizeof GPM / sizeof GPM[0] };

struct process {
    unsigned pid;
    int graphics;
    double memory;
    unsigned sm, mem, enc, dec, gpu_instance, compute_instance;
};
struct override { unsigned id; int type; double value; nvmlReturn_t code; };
struct device {
    double numbers[KEYS];
    char name[96], uuid[96], serial[32], bus_id[32];
    struct sample samples[SAMPLINGS][DEPTH]; /* a ring: the next one goes to taken % DEPTH */
    uint64_t taken[SAMPLINGS];
    double activity[GPM_METRICS]; /* the integral of each number of GPM over time */
    struct process processes[PROCESSES];
    struct override overrides[OVERRIDES];
};

enum { FUNCTIONS = 160, FAULTS = 128, EVENT_SETS = 32, EVENTS = 64, GPM_SAMPLES = 64, PENDING = 16 };
struct function { const char *name; uint64_t calls[GPUS + 1]; };
struct fault { char function[80]; int gpu; nvmlReturn_t code; double hang_ms; };
struct event { int gpu; uint64_t type, data; unsigned gpu_instance; };
struct event_set { int used; uint64_t types[GPUS]; struct event events[EVENTS]; unsigned written, read; };
struct gpm_sample { int used, taken, slot; uint64_t clock_us; double activity[GPM_METRICS]; };

static struct {
    int gpus, initialized, realtime, hanging;
    double cuda_version;
    char driver_version[80], control[4096];
    uint64_t clock_us; /* since boot, as samples are stamped */
    uint64_t boot_us;  /* since 1970, of which field values tell */
    uint64_t generation;
    struct timespec control_mtime;
    ino_t control_inode;
    off_t control_size;
    struct device devices[DEVICES];
    struct function functions[FUNCTIONS];
    struct fault faults[FAULTS];
    struct event_set event_sets[EVENT_SETS];
    struct gpm_sample gpm_samples[GPM_SAMPLES];
    struct event pending[PENDING];
} world;
static pthread_mutex_t mutex;
static pthread_cond_t changed; /* on CLOCK_MONOTONIC, so that a step of the wall clock hurts nobody */

static int absent(double number) { return isnan(number); }

/* A number as C has it; what is absent is 0 where it is given beside something else. */
static unsigned long long whole(double number) {
    return absent(number) ? 0 : number < 0 ? (unsigned long long)(long long)number : (unsigned long long)number;
}

/* 580.95.05 is 580095, so that versions compare as numbers. */
static int driver_number(void) {
    int major = 0, minor = 0;
    sscanf(world.driver_version, "%d.%d", &major, &minor);
    return major * 1000 + minor;
}

static int mig_is_on(const struct device *gpu) { return gpu->numbers[mig_mode] == 1; }
static int slot_of(const struct device *device) { return (int)(device - world.devices); }
static int gpu_of(const struct device *device) { return slot_of(device) % GPUS; }
static int is_mig(const struct device *device) { return slot_of(device) >= GPUS; }

static int is_there(int slot) {
    if (slot < 0 || slot >= DEVICES || slot % GPUS >= world.gpus)
        return 0;
    if (slot < GPUS)
        return 1;
    return mig_is_on(&world.devices[slot % GPUS]) && !absent(world.devices[slot].numbers[gpu_instance]);
}

/* ---- time ---------------------------------------------------------------------------------------------------- */

static void take_samples(struct device *device, uint64_t from_us, uint64_t to_us) {
    for (int kind = 0; kind < SAMPLINGS; kind++) {
        uint64_t step = SAMPLING[kind].step_us, first = from_us / step + 1, last = to_us / step;
        if (kind > 0 && device->numbers[idle_samples] == 0 && device->numbers[SAMPLING[kind].value] == 0)
            continue; /* some drivers take none while nothing runs */
        if (last >= DEPTH && first < last - DEPTH + 1)
            first = last - DEPTH + 1;
        for (uint64_t tick = first; tick <= last; tick++) {
            struct sample *sample = &device->samples[kind][device->taken[kind]++ % DEPTH];
            double value = device->numbers[SAMPLING[kind].value];
            sample->timestamp = tick * step;
            sample->value.ull = 0;
            sample->value.ui = (unsigned)whole(value);
        }
    }
}

static void advance(uint64_t by_us) {
    static const struct { enum key counter; unsigned reasons; } THROTTLES[] = {
        {throttle_power_ns, 0x4},        {throttle_sync_boost_ns, 0x10},  {throttle_sw_thermal_ns, 0x20},
        {throttle_hw_thermal_ns, 0x40},  {throttle_power_brake_ns, 0x80}, {throttle_thermal_ns, 0x60},
        {throttle_board_limit_ns, 0x200}, {throttle_reliability_ns, 0x400},
    };
    double seconds = (double)by_us / 1e6;
    for (int slot = 0; slot < DEVICES; slot++) {
        if (!is_there(slot))
            continue;
        double *now = world.devices[slot].numbers;
        now[energy_mj] += now[power_mw] * seconds;
        now[pcie_tx_bytes] += now[pcie_tx_rate] * seconds;
        now[pcie_rx_bytes] += now[pcie_rx_rate] * seconds;
        now[nvlink_tx_kib] += now[nvlink_tx_rate] * seconds / 1024;
        now[nvlink_rx_kib] += now[nvlink_rx_rate] * seconds / 1024;
        now[nvlink_tx_bytes] += now[nvlink_tx_rate] * seconds;
        now[nvlink_rx_bytes] += now[nvlink_rx_rate] * seconds;
        for (size_t i = 0; i < sizeof THROTTLES / sizeof THROTTLES[0]; i++)
            if (((unsigned)whole(now[event_reasons]) & THROTTLES[i].reasons))
                now[THROTTLES[i].counter] += (double)by_us * 1000;
        for (int i = 0; i < GPM_METRICS; i++)
            world.devices[slot].activity[i] += now[GPM[i].key] * seconds;
        take_samples(&world.devices[slot], world.clock_us, world.clock_us + by_us);
    }
    world.clock_us += by_us;
}

static uint64_t now_us(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static struct timespec in_ms(double milliseconds) {
    struct timespec then;
    clock_gettime(CLOCK_MONOTONIC, &then);
    int64_t ns = then.tv_nsec + (int64_t)(milliseconds * 1e6);
    then.tv_sec += ns / 1000000000;
    then.tv_nsec = ns % 1000000000;
    return then;
}

static int is_past(struct timespec then) {
    struct timespec now = in_ms(0);
    return now.tv_sec > then.tv_sec || (now.tv_sec == then.tv_sec && now.tv_nsec >= then.tv_nsec);
}

/* ---- faults, events and orders ------------------------------------------------------------------------------- */

/* Let a function meet a fault; a code of 0 and no time to hang take it away. A negative one leaves what was there. */
static int set_fault(const char *function, int gpu, nvmlReturn_t code, double hang_ms) {
    struct fault *found = NULL;
    for (int i = 0; i < FAULTS; i++) {
        struct fault *fault = &world.faults[i];
        int same = fault->gpu == gpu && strcmp(fault->function, function) == 0;
        if (same || (!found && !fault->function[0]))
            found = fault;
        if (same)
            break;
    }
    if (!found)
        return 1;
    if (!found->function[0])
        *found = (struct fault){.gpu = gpu};
    snprintf(found->function, sizeof found->function, "%s", function);
    found->code = code < 0 ? found->code : code;
    found->hang_ms = hang_ms < 0 ? found->hang_ms : hang_ms;
    if (found->code == SUCCESS && found->hang_ms == 0)
        memset(found, 0, sizeof *found);
    return 0;
}

/* The narrowest fault that meets a call: the function of this GPU, the function, all of this GPU, everything. */
static struct fault *fault_of(const char *function, int gpu, int hangs) {
    struct fault *found = NULL;
    int narrowest = -1;
    for (int i = 0; i < FAULTS; i++) {
        struct fault *fault = &world.faults[i];
        int everything = strcmp(fault->function, "*") == 0;
        if (fault->function[0] == 0 || (hangs ? fault->hang_ms <= 0 : fault->code == SUCCESS))
            continue;
        if ((!everything && strcmp(fault->function, function) != 0) || (fault->gpu != -1 && fault->gpu != gpu))
            continue;
        int narrowness = (everything ? 0 : 2) + (fault->gpu == -1 ? 0 : 1);
        if (narrowness > narrowest) {
            narrowest = narrowness;
            found = fault;
        }
    }
    return found;
}

static void push(int gpu, uint64_t type, uint64_t data, unsigned instance) {
    for (int i = 0; i < EVENT_SETS; i++) {
        struct event_set *set = &world.event_sets[i];
        if (set->used && (set->types[gpu] & type))
            set->events[set->written++ % EVENTS] = (struct event){gpu, type, data, instance};
    }
}

/* An XID error that is ordered waits for somebody to register: who gives orders cannot know when that is. */
static int push_ordered_xid(int gpu, uint64_t xid) {
    if (gpu < 0 || gpu >= GPUS)
        return 1;
    for (int i = 0; i < EVENT_SETS; i++)
        if (world.event_sets[i].types[gpu] & EVENT_XID)
            return push(gpu, EVENT_XID, xid, NOT_AVAILABLE), 0;
    for (int i = 0; i < PENDING; i++)
        if (!world.pending[i].type)
            return world.pending[i] = (struct event){gpu, EVENT_XID, xid, NOT_AVAILABLE}, 0;
    return 1;
}

static int number_of(const char *key) {
    for (int i = 0; i < KEYS; i++)
        if (strcmp(KEY_NAMES[i], key) == 0)
            return i;
    return -1;
}

static void add_mig(int slot, const char *profile, int slices, double memory_gib, int sms, int instance) {
    struct device *mig = &world.devices[slot], *gpu = &world.devices[slot % GPUS];
    for (int key = 0; key < KEYS; key++)
        mig->numbers[key] = NAN;
    mig->numbers[memory_total] = memory_gib * GIB;
    mig->numbers[memory_reserved] = 16 * MIB;
    mig->numbers[memory_used] = memory_gib * GIB / 4;
    mig->numbers[bar1_total] = memory_gib * 2 * GIB;
    mig->numbers[bar1_used] = 1 * MIB;
    mig->numbers[gpu_instance] = instance;
    mig->numbers[compute_instance] = 0;
    mig->numbers[multiprocessors] = sms;
    mig->numbers[gpu_slices] = mig->numbers[compute_slices] = slices;
    for (int key = gpm_graphics; key <= gpm_fp16; key++)
        mig->numbers[key] = gpu->numbers[key] / 2;
    snprintf(mig->name, sizeof mig->name, "%s MIG %s", MODEL_NAMES[H100], profile);
    snprintf(mig->uuid, sizeof mig->uuid, "MIG-00000000-0000-5000-8000-0000000000%x%x", slot % GPUS, slot / GPUS - 1);
}

static void become(int slot, enum model model) {
    struct device *gpu = &world.devices[slot];
    memset(gpu, 0, sizeof *gpu);
    for (int key = 0; key < KEYS; key++)
        gpu->numbers[key] = MODEL_NUMBERS[key][model];
    snprintf(gpu->name, sizeof gpu->name, "%s", MODEL_NAMES[model]);
    snprintf(gpu->uuid, sizeof gpu->uuid, "GPU-00000000-0000-4000-8000-00000000000%x", slot);
    if (model != RTX_2080)
        snprintf(gpu->serial, sizeof gpu->serial, "13210230000%02d", slot);
    snprintf(gpu->bus_id, sizeof gpu->bus_id, "00000000:%02X:00.0", 0x10 + slot);
    for (int kind = 0; kind < SAMPLINGS; kind++) /* the buffers are full when a process comes */
        take_samples(gpu, world.clock_us - DEPTH * 200000, world.clock_us);
    for (int mig = 0; mig < MIGS; mig++) {
        struct device *device = &world.devices[slot + GPUS * (mig + 1)];
        memset(device, 0, sizeof *device);
        for (int key = 0; key < KEYS; key++)
            device->numbers[key] = NAN;
    }
    if (model == H100) { /* what is there once mig_mode is 1; the third place is free */
        add_mig(slot + GPUS * 1, "3g.40gb", 3, 39.5, 60, 2);
        add_mig(slot + GPUS * 2, "1g.10gb", 1, 9.75, 16, 7);
        add_mig(slot + GPUS * 4, "1g.10gb", 1, 9.75, 16, 9);
    }
}

static void set_gpus(int gpus) {
    world.gpus = gpus;
    for (int gpu = 0; gpu < GPUS; gpu++)
        become(gpu, gpus == 2 && gpu == 1 ? RTX_2080 : H100);
}

static void uninitialize(void) {
    world.initialized = 0;
    memset(world.event_sets, 0, sizeof world.event_sets);
    memset(world.gpm_samples, 0, sizeof world.gpm_samples);
    pthread_cond_broadcast(&changed);
}

static void reload(void) {
    static const enum key LOST[] = {
        energy_mj, throttle_power_ns, throttle_thermal_ns, throttle_sync_boost_ns, throttle_board_limit_ns,
        throttle_low_util_ns, throttle_reliability_ns, throttle_app_clocks_ns, throttle_base_clocks_ns,
        throttle_sw_thermal_ns, throttle_hw_thermal_ns, throttle_power_brake_ns, pcie_tx_bytes, pcie_rx_bytes,
        pcie_replays, nvlink_tx_kib, nvlink_rx_kib, nvlink_tx_bytes, nvlink_rx_bytes, ecc_corrected_volatile,
        ecc_uncorrected_volatile,
    };
    for (int gpu = 0; gpu < world.gpus; gpu++)
        for (size_t i = 0; i < sizeof LOST / sizeof LOST[0]; i++)
            world.devices[gpu].numbers[LOST[i]] *= 0; /* what is absent stays absent */
    uninitialize();
}

static int set_text(int slot, const char *key, const char *text) {
    struct device *device = slot >= 0 && slot < DEVICES ? &world.devices[slot] : NULL;
    if (slot == -1 && strcmp(key, "driver_version") == 0)
        return snprintf(world.driver_version, sizeof world.driver_version, "%s", text), 0;
    if (device && strcmp(key, "name") == 0)
        return snprintf(device->name, sizeof device->name, "%s", text), 0;
    if (device && strcmp(key, "uuid") == 0)
        return snprintf(device->uuid, sizeof device->uuid, "%s", text), 0;
    if (device && strcmp(key, "serial") == 0)
        return snprintf(device->serial, sizeof device->serial, "%s", text), 0;
    if (device && strcmp(key, "bus_id") == 0)
        return snprintf(device->bus_id, sizeof device->bus_id, "%s", text), 0;
    return 1;
}

static int set_number(int slot, const char *key, double value) {
    if (slot == -1 && strcmp(key, "cuda_version") == 0)
        return world.cuda_version = value, 0;
    int found = number_of(key);
    if (slot < 0 || slot >= DEVICES || found < 0)
        return 1;
    world.devices[slot].numbers[found] = value;
    return 0;
}

static int set_field(int slot, unsigned id, int type, double value, nvmlReturn_t code) {
    if (slot < 0 || slot >= DEVICES)
        return 1;
    for (int i = 0; i < OVERRIDES; i++) {
        struct override *override = &world.devices[slot].overrides[i];
        if (override->id == id || override->id == 0)
            return *override = (struct override){id, type, value, code}, 0;
    }
    return 1;
}

/* One order, "lost:1"; the words of it are in the comment at the top. */
static void obey(char *order) {
    char given[256], *word[4] = {0}, *rest = order;
    snprintf(given, sizeof given, "%s", order);
    int words = 0, refused = 1;
    while (words < 3 && rest)
        word[words++] = strsep(&rest, ":");
    if (rest)
        word[words++] = rest;
    const char *what = word[0];
    double number = words > 2 ? strtod(word[2], NULL) : 0;
    int gpu = words > 1 ? atoi(word[1]) : -1, last = words > 3 ? atoi(word[3]) : -1;
    if (!strcmp(what, "lost") && words == 2)
        refused = set_fault("*", gpu, GPU_IS_LOST, -1);
    else if (!strcmp(what, "err") && words > 2)
        refused = set_fault(word[1], last, (int)number, -1);
    else if (!strcmp(what, "hang") && words > 2)
        refused = set_fault(word[1], last, -1, number);
    else if (!strcmp(what, "initfail") && words == 2)
        refused = set_fault("nvmlInitWithFlags", -1, gpu, -1);
    else if (!strcmp(what, "xid") && words == 3)
        refused = push_ordered_xid(gpu, (uint64_t)number);
    else if (!strcmp(what, "set") && words == 4)
        refused = set_number(gpu, word[2], strtod(word[3], NULL));
    else if (!strcmp(what, "none") && words == 3)
        refused = set_number(gpu, word[2], NAN);
    else if (!strcmp(what, "text") && words == 4)
        refused = set_text(gpu, word[2], word[3]);
    else if (!strcmp(what, "field") && words == 4)
        refused = set_field(gpu, (unsigned)number, VALUE_UINT, 0, last);
    else if (!strcmp(what, "advance") && words == 2)
        refused = 0, advance((uint64_t)(strtod(word[1], NULL) * 1e6));
    else if (!strcmp(what, "reload") && words == 1)
        refused = 0, reload();
    if (refused)
        fprintf(stderr, "fake_nvml: no such order: %s\n", given);
}

static void obey_all(char *orders) {
    for (char *order; (order = strsep(&orders, ",\n"));)
        if (order[0])
            obey(order);
}

static void read_control(void) {
    struct stat is;
    if (!world.control[0] || stat(world.control, &is) != 0)
        return;
    if (is.st_mtim.tv_sec == world.control_mtime.tv_sec && is.st_mtim.tv_nsec == world.control_mtime.tv_nsec &&
        is.st_ino == world.control_inode && is.st_size == world.control_size)
        return;
    FILE *file = fopen(world.control, "r");
    if (!file)
        return;
    char text[16384];
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    world.control_mtime = is.st_mtim;
    world.control_inode = is.st_ino;
    world.control_size = is.st_size;
    memset(world.faults, 0, sizeof world.faults);
    obey_all(text);
    pthread_cond_broadcast(&changed);
}

/* What happens by itself: time passes, and somebody writes the control file. */
static void catch_up(void) {
    if (world.realtime) {
        uint64_t now = now_us(CLOCK_BOOTTIME);
        if (now > world.clock_us)
            advance(now - world.clock_us);
    }
    read_control();
}

/* Wait for a change of the world, at most until then; a control file changes without telling. */
static void wait_until(struct timespec then) {
    struct timespec soon = in_ms(20);
    int first = soon.tv_sec < then.tv_sec || (soon.tv_sec == then.tv_sec && soon.tv_nsec < then.tv_nsec);
    pthread_cond_timedwait(&changed, &mutex, world.control[0] && first ? &soon : &then);
    catch_up();
}

static void reset(void) {
    uint64_t generation = world.generation;
    int hanging = world.hanging;
    char orders[4096];
    const char *text;
    memset(&world, 0, sizeof world);
    world.generation = generation; /* the next init makes handles from before void */
    world.hanging = hanging;
    world.realtime = (text = getenv("FAKE_NVML_REALTIME")) && !strcmp(text, "1");
    world.clock_us = world.realtime ? now_us(CLOCK_BOOTTIME) : 432000000000;
    world.boot_us = world.realtime ? now_us(CLOCK_REALTIME) - world.clock_us : 1700000000000000;
    world.cuda_version = 13000;
    snprintf(world.driver_version, sizeof world.driver_version, "%s",
             (text = getenv("FAKE_NVML_DRIVER")) ? text : "580.95.05");
    int gpus = (text = getenv("FAKE_NVML_GPUS")) ? atoi(text) : 2;
    set_gpus(gpus < 0 ? 0 : gpus > GPUS ? GPUS : gpus);
    snprintf(orders, sizeof orders, "%s", (text = getenv("FAKE_NVML_FAULTS")) ? text : "");
    obey_all(orders);
    snprintf(orders, sizeof orders, "%s", (text = getenv("FAKE_NVML_XID")) ? text : "");
    for (char *rest = orders, *one; (one = strsep(&rest, ",")) && one[0];) {
        char order[64];
        snprintf(order, sizeof order, "xid:%s", one);
        obey(order);
    }
    snprintf(world.control, sizeof world.control, "%s", (text = getenv("FAKE_NVML_CONTROL")) ? text : "");
    read_control();
    pthread_cond_broadcast(&changed);
}

static void make_locks(void) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &monotonic);
    pthread_mutex_init(&mutex, NULL);
}

/* NVML is not made for forks: what a child inherits is void until it calls nvmlInit itself. */
static void in_child(void) {
    make_locks();
    uninitialize();
    world.hanging = 0;
    world.generation++;
}

__attribute__((constructor)) static void load(void) {
    make_locks();
    pthread_atfork(NULL, NULL, in_child);
    reset();
}

/* ---- a call begins and ends ---------------------------------------------------------------------------------- */

static struct function *function_of(const char *name) {
    for (int i = 0; i < FUNCTIONS; i++) {
        struct function *function = &world.functions[i];
        if (!function->name)
            function->name = name;
        if (function->name == name || strcmp(function->name, name) == 0)
            return function;
    }
    return &world.functions[FUNCTIONS - 1];
}

/* Functions that came with a driver; an older library has no such symbol, which pynvml tells by the same error. */
static int has_function(const char *name) {
    static const struct { const char *name; int since; } SINCE[] = {
        {"nvmlDeviceGetTemperatureV", 570000},  {"nvmlDeviceGetMarginTemperature", 570000},
        {"nvmlDeviceGetFanSpeedRPM", 570000},   {"nvmlDeviceGetCurrentClocksEventReasons", 535000},
        {"nvmlDeviceGetSupportedClocksEventReasons", 535000}, {"nvmlDeviceGetMemoryInfo_v2", 510000},
    };
    for (size_t i = 0; i < sizeof SINCE / sizeof SINCE[0]; i++)
        if (strcmp(SINCE[i].name, name) == 0)
            return driver_number() >= SINCE[i].since;
    return 1;
}

#define HANDLE 0x4E56000000000000ull

static nvmlDevice_t handle_of(int slot) {
    return (nvmlDevice_t)(uintptr_t)(HANDLE | (world.generation & 0xFFFFFFFF) << 16 | (unsigned)(slot + 1));
}

static struct device *device_of(nvmlDevice_t handle) {
    int slot = (int)((uintptr_t)handle & 0xFFFF) - 1;
    return is_there(slot) && handle == handle_of(slot) ? &world.devices[slot] : NULL;
}

/* Hang as long as a fault says so; the mutex is free meanwhile. */
static void hang(const char *function, int gpu) {
    struct fault *fault = fault_of(function, gpu, 1);
    if (!fault)
        return;
    struct timespec then = in_ms(fault->hang_ms);
    world.hanging++;
    pthread_cond_broadcast(&changed);
    while (fault_of(function, gpu, 1) && !is_past(then))
        wait_until(then);
    if (world.hanging > 0)
        world.hanging--;
}

static nvmlReturn_t meet_faults(const char *function, int gpu) {
    struct fault *fault = fault_of(function, gpu, 0);
    return fault ? fault->code : SUCCESS;
}

static nvmlReturn_t leave(nvmlReturn_t code) {
    pthread_mutex_unlock(&mutex);
    return code;
}

/* A call about the driver begins; it holds the mutex until leave(). */
static nvmlReturn_t enter(const char *function) {
    pthread_mutex_lock(&mutex);
    function_of(function)->calls[GPUS]++;
    catch_up();
    if (!world.initialized)
        return UNINITIALIZED;
    hang(function, -1);
    if (!world.initialized) /* while it hung */
        return UNINITIALIZED;
    return has_function(function) ? meet_faults(function, -1) : FUNCTION_NOT_FOUND;
}

/* A call about a device begins; it holds the mutex until leave(). */
static nvmlReturn_t enter_device(const char *function, nvmlDevice_t handle, struct device **device) {
    pthread_mutex_lock(&mutex);
    catch_up();
    struct function *called = function_of(function);
    called->calls[GPUS]++;
    if (!world.initialized)
        return UNINITIALIZED;
    if (!(*device = device_of(handle)))
        return INVALID_ARGUMENT;
    int gpu = gpu_of(*device);
    called->calls[gpu]++;
    hang(function, gpu);
    if (!world.initialized)
        return UNINITIALIZED;
    if (!(*device = device_of(handle)))
        return INVALID_ARGUMENT;
    return has_function(function) ? meet_faults(function, gpu) : FUNCTION_NOT_FOUND;
}

#define BEGIN(handle)                                                                                                 \
    struct device *device = NULL;                                                                                     \
    nvmlReturn_t entered = enter_device(__func__, handle, &device);                                                   \
    if (entered != SUCCESS)                                                                                           \
        return leave(entered)

#define BEGIN_DRIVER()                                                                                                \
    nvmlReturn_t entered = enter(__func__);                                                                           \
    if (entered != SUCCESS)                                                                                           \
        return leave(entered)

#define REQUIRE(condition, code)                                                                                      \
    if (!(condition))                                                                                                 \
        return leave(code)

static nvmlReturn_t give(double number, unsigned *out) {
    if (!out)
        return leave(INVALID_ARGUMENT);
    if (absent(number))
        return leave(NOT_SUPPORTED);
    *out = (unsigned)whole(number);
    return leave(SUCCESS);
}

static nvmlReturn_t give_long(double number, unsigned long long *out) {
    if (!out)
        return leave(INVALID_ARGUMENT);
    if (absent(number))
        return leave(NOT_SUPPORTED);
    *out = whole(number);
    return leave(SUCCESS);
}

static nvmlReturn_t give_text(const char *text, char *out, unsigned length) {
    if (!out)
        return leave(INVALID_ARGUMENT);
    if (!text[0])
        return leave(NOT_SUPPORTED);
    if (strlen(text) >= length)
        return leave(INSUFFICIENT_SIZE);
    strcpy(out, text);
    return leave(SUCCESS);
}

#define A_NUMBER(function, key)                                                                                       \
    nvmlReturn_t function(nvmlDevice_t handle, unsigned *out) {                                                       \
        BEGIN(handle);                                                                                                \
        return give(device->numbers[key], out);                                                                       \
    }

/* ---- the driver ---------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&mutex);
    function_of(__func__)->calls[GPUS]++;
    catch_up();
    hang(__func__, -1);
    struct fault *fault = fault_of(__func__, -1, 0);
    if (fault && strcmp(fault->function, "*") != 0)
        return leave(fault->code);
    if (world.initialized++ == 0)
        world.generation++;
    return leave(SUCCESS);
}

nvmlReturn_t nvmlShutdown(void) {
    pthread_mutex_lock(&mutex);
    function_of(__func__)->calls[GPUS]++;
    catch_up();
    hang(__func__, -1);
    REQUIRE(world.initialized, UNINITIALIZED);
    if (--world.initialized == 0)
        uninitialize();
    return leave(SUCCESS);
}

const char *nvmlErrorString(nvmlReturn_t code) {
    static const struct { nvmlReturn_t code; const char *text; } TEXTS[] = {
        {0, "Success"}, {1, "Uninitialized"}, {2, "Invalid Argument"}, {3, "Not Supported"},
        {4, "Insufficient Permissions"}, {5, "Already Initialized"}, {6, "Not Found"}, {7, "Insufficient Size"},
        {8, "Insufficient External Power"}, {9, "Driver Not Loaded"}, {10, "Timeout"},
        {11, "Interrupt Request Issue"}, {12, "NVML Shared Library Not Found"}, {13, "Function Not Found"},
        {14, "Corrupted infoROM"}, {15, "GPU is lost"}, {16, "GPU requires reset"},
        {17, "The operating system has blocked the request"}, {18, "Driver/library version mismatch"},
        {19, "In use by another client"}, {20, "Insufficient Memory"}, {21, "No data"},
        {23, "Insufficient Resources"}, {25, "Argument version mismatch"}, {27, "System is not ready for the request"},
        {28, "No GPUs were found"}, {29, "Resource not in correct state to perform requested operation"},
    };
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++)
        if (TEXTS[i].code == code)
            return TEXTS[i].text;
    return "Unknown Error";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned length) {
    BEGIN_DRIVER();
    return give_text(world.driver_version, out, length);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned length) {
    char text[96];
    BEGIN_DRIVER();
    snprintf(text, sizeof text, "%d.%s", (int)world.cuda_version / 1000, world.driver_version);
    return give_text(text, out, length);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(unsigned *out) {
    BEGIN_DRIVER();
    return give(world.cuda_version, out);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(unsigned *out) {
    BEGIN_DRIVER();
    return give(world.cuda_version, out);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *out) {
    BEGIN_DRIVER();
    return give(world.gpus, out);
}

/* A handle is given unless the GPU has a fault: a lost one has none. */
static nvmlReturn_t give_handle(const char *function, int slot, nvmlReturn_t unless, nvmlDevice_t *out) {
    int gpu = slot < 0 ? -1 : slot % GPUS;
    if (gpu >= 0)
        function_of(function)->calls[gpu]++;
    hang(function, gpu);
    if (!world.initialized)
        return leave(UNINITIALIZED);
    nvmlReturn_t code = meet_faults(function, gpu);
    if (code != SUCCESS || !out || !is_there(slot))
        return leave(code != SUCCESS ? code : !out ? INVALID_ARGUMENT : unless);
    *out = handle_of(slot);
    return leave(SUCCESS);
}

static void enter_counted(const char *function) {
    pthread_mutex_lock(&mutex);
    function_of(function)->calls[GPUS]++;
    catch_up();
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out) {
    enter_counted(__func__);
    return give_handle(__func__, index < (unsigned)world.gpus ? (int)index : -1, INVALID_ARGUMENT, out);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *out) {
    int found = -1;
    enter_counted(__func__);
    for (int slot = 0; slot < DEVICES && uuid; slot++)
        if (is_there(slot) && strcmp(world.devices[slot].uuid, uuid) == 0)
            found = slot;
    return give_handle(__func__, found, NOT_FOUND, out);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *out) {
    int found = -1;
    enter_counted(__func__);
    for (int gpu = 0; gpu < world.gpus && bus_id; gpu++) {
        const char *own = world.devices[gpu].bus_id;
        if (strcasecmp(own, bus_id) == 0 || (strlen(own) > 4 && strcasecmp(own + 4, bus_id) == 0))
            found = gpu;
    }
    return give_handle(__func__, found, NOT_FOUND, out);
}

/* ---- who a device is ----------------------------------------------------------------------------------------- */

A_NUMBER(nvmlDeviceGetArchitecture, architecture)
A_NUMBER(nvmlDeviceGetBrand, brand)
A_NUMBER(nvmlDeviceGetPersistenceMode, persistence)

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t handle, unsigned *out) {
    BEGIN(handle);
    return give(is_mig(device) ? slot_of(device) / GPUS - 1 : gpu_of(device), out);
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t handle, unsigned *out) {
    BEGIN(handle);
    return give(is_mig(device) ? NAN : gpu_of(device), out);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t handle, char *out, unsigned length) {
    BEGIN(handle);
    return give_text(device->name, out, length);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t handle, char *out, unsigned length) {
    BEGIN(handle);
    return give_text(device->uuid, out, length);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t handle, char *out, unsigned length) {
    BEGIN(handle);
    return give_text(device->serial, out, length);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t handle, struct pci_info *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    const struct device *gpu = &world.devices[gpu_of(device)];
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", gpu->bus_id);
    if (strlen(gpu->bus_id) > 4)
        snprintf(out->legacy, sizeof out->legacy, "%.15s", gpu->bus_id + 4);
    sscanf(gpu->bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    out->device_id = (unsigned)whole(gpu->numbers[pci_device]);
    return leave(SUCCESS);
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t handle, int *major, int *minor) {
    BEGIN(handle);
    const struct device *gpu = &world.devices[gpu_of(device)];
    REQUIRE(major && minor, INVALID_ARGUMENT);
    REQUIRE(!absent(gpu->numbers[capability_major]), NOT_SUPPORTED);
    *major = (int)gpu->numbers[capability_major];
    *minor = (int)gpu->numbers[capability_minor];
    return leave(SUCCESS);
}

/* ---- what it does -------------------------------------------------------------------------------------------- */

A_NUMBER(nvmlDeviceGetPerformanceState, performance_state)

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t handle, struct utilization *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(!mig_is_on(device) && !absent(device->numbers[utilization]), NOT_SUPPORTED);
    out->gpu = (unsigned)whole(device->numbers[utilization]);
    out->memory = (unsigned)whole(device->numbers[memory_utilization]);
    return leave(SUCCESS);
}

static nvmlReturn_t give_codec(const struct device *device, double number, unsigned *out, unsigned *period_us) {
    if (!period_us)
        return leave(INVALID_ARGUMENT);
    *period_us = 167000;
    return give(mig_is_on(device) ? NAN : number, out);
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t handle, unsigned *out, unsigned *period_us) {
    BEGIN(handle);
    return give_codec(device, device->numbers[encoder], out, period_us);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t handle, unsigned *out, unsigned *period_us) {
    BEGIN(handle);
    return give_codec(device, device->numbers[decoder], out, period_us);
}

static nvmlReturn_t give_clock(const struct device *device, enum key first, unsigned type, unsigned *out) {
    if (type > 3)
        return leave(INVALID_ARGUMENT);
    return give(device->numbers[first + type], out);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t handle, unsigned type, unsigned *out) {
    BEGIN(handle);
    return give_clock(device, clock_graphics, type, out);
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t handle, unsigned type, unsigned *out) {
    BEGIN(handle);
    return give_clock(device, clock_max_graphics, type, out);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t handle, unsigned long long *out) {
    BEGIN(handle);
    return give_long(device->numbers[event_reasons], out);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t handle, unsigned long long *out) {
    BEGIN(handle);
    return give_long(device->numbers[event_reasons], out);
}

nvmlReturn_t nvmlDeviceGetSupportedClocksEventReasons(nvmlDevice_t handle, unsigned long long *out) {
    BEGIN(handle);
    return give_long(device->numbers[event_reasons_supported], out);
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, struct memory *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    const double *now = device->numbers;
    REQUIRE(!absent(now[memory_total]), NOT_SUPPORTED);
    out->total = whole(now[memory_total]);
    out->used = whole(now[memory_used] + now[memory_reserved]); /* the old call knows no reserve */
    out->free = out->total - out->used;
    return leave(SUCCESS);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t handle, struct memory_v2 *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(out->version == VERSION(struct memory_v2, 2), ARGUMENT_VERSION_MISMATCH);
    const double *now = device->numbers;
    REQUIRE(!absent(now[memory_total]), NOT_SUPPORTED);
    out->total = whole(now[memory_total]);
    out->reserved = whole(now[memory_reserved]);
    out->used = whole(now[memory_used]);
    out->free = out->total - out->reserved - out->used;
    return leave(SUCCESS);
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t handle, struct memory *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(!absent(device->numbers[bar1_total]), NOT_SUPPORTED);
    out->total = whole(device->numbers[bar1_total]);
    out->used = whole(device->numbers[bar1_used]);
    out->free = out->total - out->used;
    return leave(SUCCESS);
}

/* ---- heat, power and fans ------------------------------------------------------------------------------------ */

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t handle, unsigned sensor, unsigned *out) {
    BEGIN(handle);
    REQUIRE(sensor == 0, INVALID_ARGUMENT);
    return give(device->numbers[temperature], out);
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t handle, struct temperature *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(out->version == VERSION(struct temperature, 1), ARGUMENT_VERSION_MISMATCH);
    REQUIRE(out->sensor == 0, INVALID_ARGUMENT);
    return give(device->numbers[temperature], (unsigned *)&out->celsius);
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t handle, struct margin *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(out->version == VERSION(struct margin, 1), ARGUMENT_VERSION_MISMATCH);
    return give(device->numbers[margin_temperature], (unsigned *)&out->celsius);
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t handle, unsigned threshold, unsigned *out) {
    BEGIN(handle);
    REQUIRE(threshold < 8, INVALID_ARGUMENT);
    return give(threshold < 4 ? device->numbers[threshold_shutdown + threshold] : NAN, out);
}

A_NUMBER(nvmlDeviceGetPowerUsage, power_mw)
A_NUMBER(nvmlDeviceGetEnforcedPowerLimit, power_limit_enforced_mw)
A_NUMBER(nvmlDeviceGetPowerManagementLimit, power_limit_mw)
A_NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, power_limit_default_mw)

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t handle, unsigned *least, unsigned *most) {
    BEGIN(handle);
    REQUIRE(least && most, INVALID_ARGUMENT);
    REQUIRE(!absent(device->numbers[power_limit_min_mw]), NOT_SUPPORTED);
    *least = (unsigned)whole(device->numbers[power_limit_min_mw]);
    return give(device->numbers[power_limit_max_mw], most);
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t handle, unsigned long long *out) {
    BEGIN(handle);
    return give_long(device->numbers[energy_mj], out);
}

A_NUMBER(nvmlDeviceGetNumFans, fans)
A_NUMBER(nvmlDeviceGetFanSpeed, fan_speed)

nvmlReturn_t nvmlDeviceGetFanSpeed_v2(nvmlDevice_t handle, unsigned fan, unsigned *out) {
    BEGIN(handle);
    REQUIRE(!absent(device->numbers[fan_speed]), NOT_SUPPORTED);
    REQUIRE(fan < device->numbers[fans], INVALID_ARGUMENT);
    return give(device->numbers[fan_speed], out);
}

nvmlReturn_t nvmlDeviceGetFanSpeedRPM(nvmlDevice_t handle, struct fan_speed *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(out->version == VERSION(struct fan_speed, 1), ARGUMENT_VERSION_MISMATCH);
    REQUIRE(!absent(device->numbers[fan_rpm]), NOT_SUPPORTED);
    REQUIRE(out->fan < device->numbers[fans], INVALID_ARGUMENT);
    return give(device->numbers[fan_rpm], &out->rpm);
}

/* ---- links and errors ---------------------------------------------------------------------------------------- */

A_NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, pcie_generation)
A_NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, pcie_generation_max)
A_NUMBER(nvmlDeviceGetCurrPcieLinkWidth, pcie_width)
A_NUMBER(nvmlDeviceGetMaxPcieLinkWidth, pcie_width_max)
A_NUMBER(nvmlDeviceGetPcieReplayCounter, pcie_replays)

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t handle, unsigned counter, unsigned *out) {
    struct timespec window = {0, 20000000};
    BEGIN(handle);
    REQUIRE(counter < 2, INVALID_ARGUMENT);
    double rate = mig_is_on(device) ? NAN : device->numbers[counter ? pcie_rx_rate : pcie_tx_rate] / 1000;
    if (!absent(rate)) {
        pthread_mutex_unlock(&mutex);
        nanosleep(&window, NULL);
        pthread_mutex_lock(&mutex);
    }
    return give(rate, out);
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t handle, unsigned link, unsigned *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(!absent(device->numbers[nvlink_links]), NOT_SUPPORTED);
    REQUIRE(link < device->numbers[nvlink_links], INVALID_ARGUMENT);
    *out = 1;
    return leave(SUCCESS);
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t handle, unsigned *current, unsigned *pending) {
    BEGIN(handle);
    REQUIRE(pending, INVALID_ARGUMENT);
    *pending = (unsigned)whole(device->numbers[ecc_mode]);
    return give(device->numbers[ecc_mode], current);
}

static double ecc_errors(const struct device *device, unsigned type, unsigned counter) {
    static const enum key KEY[2][2] = {{ecc_corrected_volatile, ecc_corrected_aggregate},
                                       {ecc_uncorrected_volatile, ecc_uncorrected_aggregate}};
    return device->numbers[ecc_mode] == 1 ? device->numbers[KEY[type][counter]] : NAN;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t handle, unsigned type, unsigned counter,
                                         unsigned long long *out) {
    BEGIN(handle);
    REQUIRE(type < 2 && counter < 2, INVALID_ARGUMENT);
    return give_long(ecc_errors(device, type, counter), out);
}

nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t handle, unsigned type, unsigned counter, unsigned location,
                                             unsigned long long *out) {
    BEGIN(handle);
    REQUIRE(type < 2 && counter < 2 && location < 9, INVALID_ARGUMENT);
    double errors = ecc_errors(device, type, counter); /* all of them happened in the device's memory, none in SRAM */
    return give_long(location == 2 ? errors : location == 7 ? errors * 0 : NAN, out);
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t handle, unsigned *corrected, unsigned *uncorrected,
                                       unsigned *pending, unsigned *failure) {
    BEGIN(handle);
    REQUIRE(corrected && uncorrected && pending && failure, INVALID_ARGUMENT);
    REQUIRE(!mig_is_on(device) && !absent(device->numbers[remapped_corrected]), NOT_SUPPORTED);
    *corrected = (unsigned)whole(device->numbers[remapped_corrected]);
    *uncorrected = (unsigned)whole(device->numbers[remapped_uncorrected]);
    *pending = (unsigned)whole(device->numbers[remapped_pending]);
    *failure = (unsigned)whole(device->numbers[remapped_failure]);
    return leave(SUCCESS);
}

static nvmlReturn_t give_pages(const struct device *device, unsigned cause, unsigned *count,
                               unsigned long long *addresses, unsigned long long *times) {
    if (cause > 1 || !count)
        return leave(INVALID_ARGUMENT);
    double pages = device->numbers[cause == 0 ? retired_single : retired_double];
    if (absent(pages))
        return leave(NOT_SUPPORTED);
    unsigned room = *count;
    *count = (unsigned)pages;
    if (room < *count)
        return leave(INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < *count && addresses; i++) {
        addresses[i] = 0x1000ull * (i + 1) + cause;
        if (times)
            times[i] = world.boot_us + world.clock_us;
    }
    return leave(SUCCESS);
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t handle, unsigned cause, unsigned *count,
                                       unsigned long long *addresses) {
    BEGIN(handle);
    return give_pages(device, cause, count, addresses, NULL);
}

nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t handle, unsigned cause, unsigned *count,
                                          unsigned long long *addresses, unsigned long long *times) {
    BEGIN(handle);
    return give_pages(device, cause, count, addresses, times);
}

A_NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, retired_pending)

/* ---- field values -------------------------------------------------------------------------------------------- */

/* The fields by id, from the first driver that has them; the last row that fits counts. 575 moved power smoothing up
   and put the reasons for slow clocks in its place, 580.82 took that back (nvidia-ml-py 12.570.86, 12.575.51 and
   13.580.82). */
static const struct field { unsigned id; int type; enum key key; int since; } FIELDS[] = {
    {1, VALUE_UINT, ecc_mode, 0},
    {2, VALUE_UINT, ecc_mode, 0},
    {3, VALUE_ULONGLONG, ecc_corrected_volatile, 0},
    {4, VALUE_ULONGLONG, ecc_uncorrected_volatile, 0},
    {5, VALUE_ULONGLONG, ecc_corrected_aggregate, 0},
    {6, VALUE_ULONGLONG, ecc_uncorrected_aggregate, 0},
    {29, VALUE_ULONGLONG, retired_single, 0},
    {30, VALUE_ULONGLONG, retired_double, 0},
    {31, VALUE_UINT, retired_pending, 0},
    {74, VALUE_ULONGLONG, throttle_power_ns, 0},
    {75, VALUE_ULONGLONG, throttle_thermal_ns, 0},
    {76, VALUE_ULONGLONG, throttle_sync_boost_ns, 0},
    {77, VALUE_ULONGLONG, throttle_board_limit_ns, 0},
    {78, VALUE_ULONGLONG, throttle_low_util_ns, 0},
    {79, VALUE_ULONGLONG, throttle_reliability_ns, 0},
    {80, VALUE_ULONGLONG, throttle_app_clocks_ns, 0},
    {81, VALUE_ULONGLONG, throttle_base_clocks_ns, 0},
    {82, VALUE_UINT, memory_temperature, 0},
    {83, VALUE_ULONGLONG, energy_mj, 0},
    {91, VALUE_UINT, nvlink_links, 0},
    {94, VALUE_UINT, pcie_replays, 0},
    {138, VALUE_ULONGLONG, nvlink_tx_kib, 0},
    {139, VALUE_ULONGLONG, nvlink_rx_kib, 0},
    {140, VALUE_ULONGLONG, nvlink_tx_kib, 0},
    {141, VALUE_ULONGLONG, nvlink_rx_kib, 0},
    {142, VALUE_UINT, remapped_corrected, 0},
    {143, VALUE_UINT, remapped_uncorrected, 0},
    {144, VALUE_UINT, remapped_pending, 0},
    {145, VALUE_UINT, remapped_failure, 0},
    {185, VALUE_UINT, power_average_mw, 530000},
    {186, VALUE_UINT, power_instant_mw, 530000},
    {187, VALUE_UINT, power_limit_min_mw, 530000},
    {188, VALUE_UINT, power_limit_max_mw, 530000},
    {189, VALUE_UINT, power_limit_default_mw, 530000},
    {190, VALUE_UINT, power_limit_enforced_mw, 530000},
    {192, VALUE_UINT, power_limit_mw, 535000},
    {193, VALUE_SINT, tlimit_shutdown, 535000},
    {194, VALUE_SINT, tlimit_slowdown, 535000},
    {195, VALUE_SINT, tlimit_memory_max, 535000},
    {196, VALUE_SINT, tlimit_gpu_max, 535000},
    {197, VALUE_UINT, pcie_tx_bytes, 560000},
    {198, VALUE_UINT, pcie_rx_bytes, 560000},
    {202, VALUE_ULONGLONG, nvlink_tx_bytes, 560000},
    {204, VALUE_ULONGLONG, nvlink_rx_bytes, 560000},
    {230, VALUE_UINT, recovery_action, 570000},
    {251, VALUE_UINT, power_smoothing, 570000},
    {252, VALUE_UINT, power_smoothing, 570000},
    {253, VALUE_UINT, power_smoothing, 570000},
    {251, VALUE_ULONGLONG, throttle_sw_thermal_ns, 575000},
    {252, VALUE_ULONGLONG, throttle_hw_thermal_ns, 575000},
    {253, VALUE_ULONGLONG, throttle_power_brake_ns, 575000},
    {269, VALUE_UINT, power_smoothing, 575000},
    {270, VALUE_UINT, power_smoothing, 575000},
    {271, VALUE_UINT, power_smoothing, 575000},
    {251, VALUE_UINT, power_smoothing, 580082},
    {252, VALUE_UINT, power_smoothing, 580082},
    {253, VALUE_UINT, power_smoothing, 580082},
    {269, VALUE_ULONGLONG, throttle_sw_thermal_ns, 580082},
    {270, VALUE_ULONGLONG, throttle_hw_thermal_ns, 580082},
    {271, VALUE_ULONGLONG, throttle_power_brake_ns, 580082},
};

static void put(struct field_value *field, int type, double number) {
    field->type = type;
    field->value.ull = 0;
    if (type == VALUE_DOUBLE)
        field->value.d = number;
    else if (type == VALUE_UINT)
        field->value.ui = (unsigned)whole(number);
    else if (type == VALUE_SINT)
        field->value.si = (int)number;
    else if (type == VALUE_SLONGLONG)
        field->value.sll = (long long)number;
    else
        field->value.ull = whole(number);
}

static nvmlReturn_t read_field(const struct device *device, struct field_value *field) {
    for (int i = 0; i < OVERRIDES; i++) {
        const struct override *override = &device->overrides[i];
        if (override->id == field->id && override->id != 0) {
            if (override->code == SUCCESS)
                put(field, override->type, override->value);
            return override->code;
        }
    }
    const struct field *known = NULL;
    for (size_t i = 0; i < sizeof FIELDS / sizeof FIELDS[0]; i++) {
        const struct field *one = &FIELDS[i];
        if (one->id == field->id && driver_number() >= one->since)
            known = one;
    }
    if (!known)
        return NOT_SUPPORTED;
    double number = device->numbers[known->key];
    int of_links = known->key >= nvlink_tx_kib && known->key <= nvlink_rx_bytes;
    int of_power = field->id >= 185 && field->id <= 192;
    if (absent(number))
        return NOT_SUPPORTED;
    if (of_power && field->scope != 0) /* 1 is the module, 2 the memory */
        return field->scope < 4 ? NOT_SUPPORTED : INVALID_ARGUMENT;
    if (of_links && field->scope != NOT_AVAILABLE) { /* else all links together */
        if (field->scope >= device->numbers[nvlink_links])
            return INVALID_ARGUMENT;
        number = floor(number / device->numbers[nvlink_links]);
    }
    int wide = device->numbers[pcie_bits] > 32 && (field->id == 197 || field->id == 198);
    put(field, wide ? VALUE_ULONGLONG : known->type, number); /* 32 bits wrap */
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t handle, int count, struct field_value *values) {
    BEGIN(handle);
    REQUIRE(values && count > 0, INVALID_ARGUMENT);
    for (int i = 0; i < count; i++) {
        values[i].timestamp = (long long)(world.boot_us + world.clock_us);
        values[i].latency = 5;
        values[i].code = read_field(device, &values[i]);
    }
    return leave(SUCCESS);
}

/* ---- samples ------------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t handle, unsigned kind, unsigned long long last_seen, int *type,
                                  unsigned *count, struct sample *out) {
    BEGIN(handle);
    REQUIRE(type && count, INVALID_ARGUMENT);
    REQUIRE(kind < 10, INVALID_ARGUMENT);
    REQUIRE(kind < SAMPLINGS && !is_mig(device), NOT_SUPPORTED);
    double depth = fmin(device->numbers[SAMPLING[kind].depth], DEPTH);
    REQUIRE(!absent(device->numbers[SAMPLING[kind].depth]), NOT_SUPPORTED);
    REQUIRE(!absent(device->numbers[SAMPLING[kind].value]), NOT_SUPPORTED);
    REQUIRE(kind == 0 || !mig_is_on(device), NOT_SUPPORTED);
    *type = VALUE_UINT;
    if (!out) {
        *count = (unsigned)depth;
        return leave(SUCCESS);
    }
    REQUIRE(*count > 0, INVALID_ARGUMENT);
    uint64_t end = device->taken[kind], start = end > depth ? end - (uint64_t)depth : 0;
    unsigned given = 0;
    for (uint64_t i = start; i < end && given < *count; i++) {
        const struct sample *sample = &device->samples[kind][i % DEPTH];
        if (sample->timestamp > last_seen)
            out[given++] = *sample;
    }
    *count = given;
    return leave(given ? SUCCESS : NOT_FOUND);
}

/* ---- processes ----------------------------------------------------------------------------------------------- */

static nvmlReturn_t give_processes(const struct device *device, int graphics, unsigned *count,
                                   struct process_info *out) {
    if (!count)
        return leave(INVALID_ARGUMENT);
    const struct process *processes = world.devices[gpu_of(device)].processes;
    unsigned room = out ? *count : 0, found = 0;
    for (int i = 0; i < PROCESSES; i++) {
        const struct process *one = &processes[i];
        if (!one->pid || one->graphics != graphics)
            continue;
        if (is_mig(device) && one->gpu_instance != (unsigned)whole(device->numbers[gpu_instance]))
            continue;
        if (found < room)
            out[found] = (struct process_info){one->pid,
                                               absent(one->memory) ? ~0ull : (unsigned long long)one->memory,
                                               one->gpu_instance, one->compute_instance};
        found++;
    }
    *count = found;
    return leave(found > room ? INSUFFICIENT_SIZE : SUCCESS);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t handle, unsigned *count, struct process_info *out) {
    BEGIN(handle);
    return give_processes(device, 0, count, out);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t handle, unsigned *count, struct process_info *out) {
    BEGIN(handle);
    return give_processes(device, 1, count, out);
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t handle, struct process_utilization *out, unsigned *count,
                                             unsigned long long last_seen) {
    BEGIN(handle);
    REQUIRE(count, INVALID_ARGUMENT);
    REQUIRE(!mig_is_on(device) && !is_mig(device) && !absent(device->numbers[utilization]), NOT_SUPPORTED);
    unsigned room = out ? *count : 0, found = 0;
    unsigned long long timestamp = world.clock_us / 200000 * 200000;
    for (int i = 0; i < PROCESSES && timestamp > last_seen; i++) {
        const struct process *one = &device->processes[i];
        if (!one->pid || !(one->sm || one->mem || one->enc || one->dec))
            continue;
        if (found < room)
            out[found] = (struct process_utilization){one->pid, timestamp, one->sm, one->mem, one->enc, one->dec};
        found++;
    }
    REQUIRE(found, NOT_FOUND);
    *count = found;
    return leave(found > room ? INSUFFICIENT_SIZE : SUCCESS);
}

/* ---- GPM ----------------------------------------------------------------------------------------------------- */

static struct gpm_sample *gpm_sample_of(nvmlGpmSample_t handle) {
    for (int i = 0; i < GPM_SAMPLES; i++)
        if (handle == &world.gpm_samples[i] && world.gpm_samples[i].used)
            return &world.gpm_samples[i];
    return NULL;
}

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t handle, struct gpm_support *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(out->version == 1, ARGUMENT_VERSION_MISMATCH);
    out->supported = !absent(device->numbers[gpm_sm]);
    return leave(SUCCESS);
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *out) {
    BEGIN_DRIVER();
    REQUIRE(out, INVALID_ARGUMENT);
    for (int i = 0; i < GPM_SAMPLES; i++) {
        struct gpm_sample *sample = &world.gpm_samples[i];
        if (!sample->used) {
            memset(sample, 0, sizeof *sample);
            sample->used = 1;
            *out = sample;
            return leave(SUCCESS);
        }
    }
    return leave(INSUFFICIENT_RESOURCES); /* somebody does not free them */
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t handle) {
    BEGIN_DRIVER();
    struct gpm_sample *sample = gpm_sample_of(handle);
    REQUIRE(sample, INVALID_ARGUMENT);
    sample->used = 0;
    return leave(SUCCESS);
}

static nvmlReturn_t fill_gpm_sample(const struct device *device, nvmlGpmSample_t handle) {
    struct gpm_sample *sample = gpm_sample_of(handle);
    if (!sample)
        return leave(INVALID_ARGUMENT);
    if (absent(device->numbers[gpm_sm]))
        return leave(NOT_SUPPORTED);
    sample->taken = 1;
    sample->slot = slot_of(device);
    sample->clock_us = world.clock_us;
    memcpy(sample->activity, device->activity, sizeof sample->activity);
    return leave(SUCCESS);
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t handle, nvmlGpmSample_t sample) {
    BEGIN(handle);
    REQUIRE(!is_mig(device), INVALID_ARGUMENT);
    return fill_gpm_sample(device, sample);
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t handle, unsigned instance, nvmlGpmSample_t sample) {
    BEGIN(handle);
    REQUIRE(!is_mig(device) && mig_is_on(device), INVALID_ARGUMENT);
    for (int mig = 0; mig < MIGS; mig++) {
        int slot = gpu_of(device) + GPUS * (mig + 1);
        if (is_there(slot) && world.devices[slot].numbers[gpu_instance] == instance)
            return fill_gpm_sample(&world.devices[slot], sample);
    }
    return leave(NOT_FOUND);
}

nvmlReturn_t nvmlGpmMetricsGet(struct gpm_metrics *out) {
    BEGIN_DRIVER();
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(out->version == 1, ARGUMENT_VERSION_MISMATCH);
    const struct gpm_sample *first = gpm_sample_of(out->first), *second = gpm_sample_of(out->second);
    REQUIRE(first && second && first->taken && second->taken && out->count > 0, INVALID_ARGUMENT);
    REQUIRE(first->slot == second->slot && second->clock_us > first->clock_us, INVALID_ARGUMENT);
    double seconds = (double)(second->clock_us - first->clock_us) / 1e6;
    for (unsigned i = 0; i < out->count; i++) {
        struct gpm_metric *metric = &out->metrics[i];
        metric->code = NOT_SUPPORTED;
        metric->value = 0;
        for (int known = 0; known < GPM_METRICS; known++) {
            double mean = (second->activity[known] - first->activity[known]) / seconds / GPM[known].scale;
            if (GPM[known].id != metric->id || absent(mean))
                continue;
            metric->code = SUCCESS;
            metric->value = mean;
            metric->info.short_name = metric->info.long_name = GPM[known].name;
            metric->info.unit = GPM[known].unit;
        }
    }
    return leave(SUCCESS);
}

/* ---- events -------------------------------------------------------------------------------------------------- */

static struct event_set *event_set_of(nvmlEventSet_t handle) {
    for (int i = 0; i < EVENT_SETS; i++)
        if (handle == &world.event_sets[i] && world.event_sets[i].used)
            return &world.event_sets[i];
    return NULL;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *out) {
    BEGIN_DRIVER();
    REQUIRE(out, INVALID_ARGUMENT);
    for (int i = 0; i < EVENT_SETS; i++) {
        struct event_set *set = &world.event_sets[i];
        if (!set->used) {
            memset(set, 0, sizeof *set);
            set->used = 1;
            *out = set;
            return leave(SUCCESS);
        }
    }
    return leave(INSUFFICIENT_RESOURCES); /* somebody does not free them */
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t handle) {
    BEGIN_DRIVER();
    struct event_set *set = event_set_of(handle);
    REQUIRE(set, INVALID_ARGUMENT);
    set->used = 0;
    pthread_cond_broadcast(&changed);
    return leave(SUCCESS);
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t handle, unsigned long long *out) {
    BEGIN(handle);
    return give_long(device->numbers[event_types], out);
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t handle, unsigned long long types, nvmlEventSet_t set_handle) {
    BEGIN(handle);
    struct event_set *set = event_set_of(set_handle);
    REQUIRE(set, INVALID_ARGUMENT);
    REQUIRE(!is_mig(device) && !absent(device->numbers[event_types]), NOT_SUPPORTED);
    REQUIRE((types & ~whole(device->numbers[event_types])) == 0, NOT_SUPPORTED);
    set->types[gpu_of(device)] |= types;
    for (int i = 0; i < PENDING; i++) {
        struct event *event = &world.pending[i];
        if (event->type && event->gpu == gpu_of(device) && (types & event->type)) {
            set->events[set->written++ % EVENTS] = *event;
            event->type = 0;
        }
    }
    return leave(SUCCESS);
}

static int watches_lost_gpu(const struct event_set *set) {
    for (int gpu = 0; gpu < world.gpus; gpu++)
        if (set->types[gpu] && meet_faults("nvmlEventSetWait_v2", gpu) == GPU_IS_LOST)
            return 1;
    return 0;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t handle, struct event_data *out, unsigned timeout_ms) {
    BEGIN_DRIVER();
    struct event_set *set = event_set_of(handle);
    REQUIRE(set && out, INVALID_ARGUMENT);
    struct timespec then = in_ms(timeout_ms);
    for (;;) {
        if (set->read < set->written) {
            const struct event *event = &set->events[set->read++ % EVENTS];
            unsigned instance = event->gpu_instance;
            *out = (struct event_data){handle_of(event->gpu), event->type, event->data, instance,
                                       instance == NOT_AVAILABLE ? NOT_AVAILABLE : 0};
            return leave(SUCCESS);
        }
        REQUIRE(!watches_lost_gpu(set), GPU_IS_LOST);
        REQUIRE(!is_past(then), TIMEOUT);
        wait_until(then);
        REQUIRE(world.initialized, UNINITIALIZED);
        REQUIRE(event_set_of(handle), INVALID_ARGUMENT);
    }
}

/* ---- MIG ----------------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t handle, unsigned *current, unsigned *pending) {
    BEGIN(handle);
    REQUIRE(pending, INVALID_ARGUMENT);
    double after_reset = device->numbers[mig_pending];
    *pending = (unsigned)whole(absent(after_reset) ? device->numbers[mig_mode] : after_reset);
    return give(device->numbers[mig_mode], current);
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t handle, unsigned *out) {
    BEGIN(handle);
    return give(mig_is_on(device) ? device->numbers[mig_max] : 0, out);
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t handle, unsigned *out) {
    BEGIN(handle);
    return give(is_mig(device), out);
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t handle, unsigned index, nvmlDevice_t *out) {
    BEGIN(handle);
    REQUIRE(out && !is_mig(device), INVALID_ARGUMENT);
    REQUIRE(!absent(device->numbers[mig_mode]), NOT_SUPPORTED);
    REQUIRE(index < MIGS, INVALID_ARGUMENT);
    int slot = gpu_of(device) + GPUS * ((int)index + 1);
    REQUIRE(is_there(slot), NOT_FOUND);
    *out = handle_of(slot);
    return leave(SUCCESS);
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t handle, nvmlDevice_t *out) {
    BEGIN(handle);
    REQUIRE(out && is_mig(device), INVALID_ARGUMENT);
    *out = handle_of(gpu_of(device));
    return leave(SUCCESS);
}

A_NUMBER(nvmlDeviceGetGpuInstanceId, gpu_instance)
A_NUMBER(nvmlDeviceGetComputeInstanceId, compute_instance)

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t handle, struct attributes *out) {
    BEGIN(handle);
    REQUIRE(out, INVALID_ARGUMENT);
    REQUIRE(is_mig(device), NOT_SUPPORTED);
    memset(out, 0, sizeof *out);
    out->multiprocessors = (unsigned)whole(device->numbers[multiprocessors]);
    out->copy_engines = (unsigned)whole(device->numbers[gpu_slices]);
    out->decoders = (unsigned)whole(device->numbers[gpu_slices]);
    out->gpu_slices = (unsigned)whole(device->numbers[gpu_slices]);
    out->compute_slices = (unsigned)whole(device->numbers[compute_slices]);
    out->memory_mib = whole(device->numbers[memory_total] / MIB);
    return leave(SUCCESS);
}

/* ---- what tests do to the world ------------------------------------------------------------------------------ */

#define LOOK(statement)                                                                                               \
    do {                                                                                                              \
        pthread_mutex_lock(&mutex);                                                                                   \
        catch_up(); /* what was until now, was as it was */                                                           \
        statement;                                                                                                    \
        pthread_mutex_unlock(&mutex);                                                                                 \
    } while (0)

#define CONTROL(statement)                                                                                            \
    LOOK({                                                                                                            \
        statement;                                                                                                    \
        pthread_cond_broadcast(&changed);                                                                             \
    })

int fake_set_number(int slot, const char *key, double value) {
    int code;
    CONTROL(code = set_number(slot, key, value));
    return code;
}

double fake_number(int slot, const char *key) {
    int found = number_of(key);
    double value = NAN;
    LOOK(if (found >= 0 && slot >= 0 && slot < DEVICES) value = world.devices[slot].numbers[found]);
    return value;
}

int fake_set_text(int slot, const char *key, const char *text) {
    int code;
    CONTROL(code = set_text(slot, key, text));
    return code;
}

/* A field that is not in the table, or other than the table says; with a code, the field fails with it. */
int fake_set_field(int slot, unsigned id, int type, double value, int code) {
    int refused;
    CONTROL(refused = set_field(slot, id, type, value, code));
    return refused;
}

static int set_process(int gpu, struct process process) {
    struct process *place = NULL;
    for (int i = 0; i < PROCESSES && gpu >= 0 && gpu < GPUS; i++) {
        struct process *one = &world.devices[gpu].processes[i];
        int same = one->pid == process.pid && one->graphics == process.graphics;
        if (same || (!place && !one->pid))
            place = one;
        if (same)
            break;
    }
    if (place)
        *place = process;
    return place == NULL;
}

int fake_set_process(int gpu, int graphics, unsigned pid, double memory, unsigned sm, unsigned mem, unsigned enc,
                     unsigned dec, unsigned instance, unsigned compute) {
    int code;
    CONTROL(code = set_process(gpu, (struct process){pid, graphics, memory, sm, mem, enc, dec, instance, compute}));
    return code;
}

void fake_end_process(int gpu, unsigned pid) {
    CONTROL({
        for (int i = 0; i < PROCESSES; i++)
            if (world.devices[gpu].processes[i].pid == pid)
                memset(&world.devices[gpu].processes[i], 0, sizeof(struct process));
    });
}

int fake_fail(const char *function, int gpu, int code) {
    int refused;
    CONTROL(refused = set_fault(function, gpu, code, -1));
    return refused;
}

int fake_hang(const char *function, int gpu, double milliseconds) {
    int refused;
    CONTROL(refused = set_fault(function, gpu, -1, milliseconds));
    return refused;
}

void fake_clear_faults(void) { CONTROL(memset(world.faults, 0, sizeof world.faults)); }
void fake_push_event(int gpu, uint64_t type, uint64_t data, unsigned instance) {
    CONTROL(push(gpu, type, data, instance));
}
void fake_push_xid(int gpu, uint64_t code) { CONTROL(push(gpu, EVENT_XID, code, NOT_AVAILABLE)); }
void fake_advance(double seconds) { CONTROL(advance((uint64_t)llround(seconds * 1e6))); }
void fake_reload(void) { CONTROL(reload()); }
void fake_reset(void) { CONTROL(reset()); }
void fake_set_gpus(int gpus) { CONTROL(set_gpus(gpus < 0 ? 0 : gpus > GPUS ? GPUS : gpus)); }

int fake_become(int gpu, const char *name) {
    for (int model = 0; model < MODELS; model++)
        if (strcmp(MODEL_NAMES[model], name) == 0 && gpu >= 0 && gpu < GPUS) {
            CONTROL(become(gpu, model));
            return 0;
        }
    return 1;
}

/* The calls of a function (NULL: of all) about a GPU (-1: about any, or none). */
uint64_t fake_calls(const char *name, int gpu) {
    uint64_t calls = 0;
    LOOK({
        for (int i = 0; i < FUNCTIONS && world.functions[i].name; i++)
            if (!name || strcmp(world.functions[i].name, name) == 0)
                calls += world.functions[i].calls[gpu < 0 ? GPUS : gpu];
    });
    return calls;
}

uint64_t fake_clock_us(void) {
    uint64_t clock;
    LOOK(clock = world.clock_us);
    return clock;
}

/* Let the clock show something else, as another machine's would, without time passing. */
static void set_clock(uint64_t clock_us) {
    uint64_t step = clock_us - world.clock_us; /* modulo 2^64, so that it may go back */
    for (int slot = 0; slot < DEVICES; slot++)
        for (int kind = 0; kind < SAMPLINGS; kind++)
            for (int i = 0; i < DEPTH; i++)
                world.devices[slot].samples[kind][i].timestamp += step;
    for (int i = 0; i < GPM_SAMPLES; i++)
        world.gpm_samples[i].clock_us += step;
    world.boot_us -= step;
    world.clock_us = clock_us;
}

void fake_set_clock_us(uint64_t clock_us) { CONTROL(set_clock(clock_us)); }

/* How many of a kind there are: calls that hang now, event sets and GPM samples that nobody freed, inits. */
int fake_count(const char *what) {
    int count = 0;
    pthread_mutex_lock(&mutex);
    if (!strcmp(what, "hanging"))
        count = world.hanging;
    else if (!strcmp(what, "initialized"))
        count = world.initialized;
    else if (!strcmp(what, "event_sets"))
        for (int i = 0; i < EVENT_SETS; i++)
            count += world.event_sets[i].used;
    else if (!strcmp(what, "gpm_samples"))
        for (int i = 0; i < GPM_SAMPLES; i++)
            count += world.gpm_samples[i].used;
    else
        count = -1;
    pthread_mutex_unlock(&mutex);
    return count;
}
