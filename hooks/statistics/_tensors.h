/* Finds torch tensors from C: where they lie, their gradients, what an optimizer keeps of them. Included by _one_pass.c alone.
 *
 * No torch headers: torch describes a tensor in the plain struct of DLPack, through the function table that it offers as
 * `Tensor.__dlpack_c_exchange_api__` (torch 2.10 and newer). One call tells address, dtype, device, shape and strides, where
 * Python needs a call for each. Nothing is kept between calls: a stale address could crash the user's training.
 */
#ifndef STABKIT_TENSORS_H
#define STABKIT_TENSORS_H

typedef struct { /* DLTensor of dlpack.h, version 1 */
    void *data;
    int32_t device, device_id, dimensions;
    uint8_t kind, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} Described;

typedef struct { /* DLPackExchangeAPI of dlpack.h, version 1 */
    uint32_t major, minor;
    void *previous;
    void *allocate, *managed_from, *managed_to;
    int (*describe)(void *tensor, Described *out);
} Exchange;

enum { ON_CPU = 1, FLOAT = 2 };

static struct {
    int (*describe)(void *, Described *);
    PyObject *tensor, *parameter; /* the classes: a subclass may have no memory of its own */
    PyObject *grad, *version, *is_neg, *step, *params, *requires_grad;
} torch;

static PyObject *bind(PyObject *self, PyObject *arguments) {
    PyObject *capsule, *tensor, *parameter;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OOO", &capsule, &tensor, &parameter)) return NULL;
    const Exchange *table = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    if (!table) return NULL;
    if (table->major != 1 || !table->describe) Py_RETURN_FALSE;
    torch.grad = PyUnicode_InternFromString("grad"), torch.version = PyUnicode_InternFromString("_version");
    torch.is_neg = PyUnicode_InternFromString("is_neg"), torch.step = PyUnicode_InternFromString("step");
    torch.params = PyUnicode_InternFromString("params"), torch.requires_grad = PyUnicode_InternFromString("requires_grad");
    if (!torch.grad || !torch.version || !torch.is_neg || !torch.step || !torch.params || !torch.requires_grad) return NULL;
    Py_INCREF(tensor), Py_INCREF(parameter);
    torch.describe = table->describe, torch.tensor = tensor, torch.parameter = parameter;
    Py_RETURN_TRUE;
}

static int is_plain(PyObject *object) {
    PyObject *type = (PyObject *)Py_TYPE(object);
    return type == torch.tensor || type == torch.parameter;
}

/* Elements of a tensor that lies on the CPU without gaps, its dimensions in order; 0 of any other kind, or of none. */
static int64_t elements_of(PyObject *tensor, Described *out) {
    int64_t count = 1;
    if (!is_plain(tensor)) return 0;
    if (torch.describe(tensor, out)) { /* a sparse one */
        PyErr_Clear();
        return 0;
    }
    if (out->device != ON_CPU || out->lanes != 1) return 0;
    for (int d = out->dimensions - 1; d >= 0; d--) {
        if (out->strides && out->shape[d] != 1 && out->strides[d] != count) return 0;
        count *= out->shape[d];
    }
    return count;
}

/* Address of a float32 tensor of a size, or of any but none where that is 0, and the size; 0 of one that C cannot read. */
static uint64_t address_of(PyObject *tensor, int64_t *size) {
    Described found;
    int64_t count = elements_of(tensor, &found);
    if (!count || (*size && count != *size) || found.kind != FLOAT || found.bits != 32) return 0;
    *size = count;
    return (uint64_t)(uintptr_t)found.data + found.byte_offset;
}

/* Whether these are the parameters of the optimizer's groups, in order, and ask for gradients as `trainable` has it. */
static PyObject *py_same(PyObject *self, PyObject *arguments) {
    PyObject *groups, *parameters, *trainable; /* lists; the last may be None */
    Py_ssize_t at = 0, same = 1;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "O!O!O", &PyList_Type, &groups, &PyList_Type, &parameters, &trainable)) return NULL;
    for (Py_ssize_t g = 0; same && g < PyList_Size(groups); g++) {
        PyObject *group = PyList_GetItem(groups, g);
        PyObject *params = PyDict_Check(group) ? PyDict_GetItemWithError(group, torch.params) : NULL;
        if (!params || !PyList_Check(params)) return PyErr_Occurred() ? NULL : (Py_INCREF(Py_None), Py_None);
        Py_ssize_t count = PyList_Size(params);
        same = count <= PyList_Size(parameters) - at;
        for (Py_ssize_t i = 0; same && i < count; i++, at++) same = PyList_GetItem(params, i) == PyList_GetItem(parameters, at);
    }
    same = same && at == PyList_Size(parameters);
    for (Py_ssize_t i = 0; same && trainable != Py_None && i < at; i++) {
        PyObject *now = PyObject_GetAttr(PyList_GetItem(parameters, i), torch.requires_grad);
        if (!now) return NULL;
        same = now == PyList_GetItem(trainable, i);
        Py_DECREF(now);
    }
    return PyBool_FromLong((long)same);
}

/* The optimizer's state of each parameter, borrowed; NULL of those without. Asks for no hash where the order is the same:
 * that of a tensor is a function in Python. */
static int states_of(PyObject *parameters, PyObject *state, PyObject **out, Py_ssize_t count) {
    PyObject *key, *value;
    Py_ssize_t place = 0, at = 0;
    memset(out, 0, count * sizeof *out);
    while (PyDict_Next(state, &place, &key, &value)) {
        while (at < count && PyList_GetItem(parameters, at) != key) at++;
        if (at == count) goto disorder;
        out[at++] = value;
    }
    return 1;
disorder:
    for (at = 0; at < count; at++) {
        if (out[at]) continue;
        out[at] = PyDict_GetItemWithError(state, PyList_GetItem(parameters, at));
        if (!out[at] && PyErr_Occurred()) return 0;
    }
    return 1;
}

/* The optimizer's count of steps of a parameter: -1 where it keeps nothing, NaN where Python has to look. */
static double count_in(PyObject *state) {
    PyObject *step = state && PyDict_Check(state) ? PyDict_GetItemWithError(state, torch.step) : NULL;
    Described found;
    if (!step || step == Py_None) /* it may go by another name */
        return PyErr_Clear(), state && PyDict_Check(state) && PyDict_Size(state) ? NAN : -1;
    if (PyFloat_Check(step) || PyLong_Check(step)) {
        double number = PyFloat_AsDouble(step);
        return PyErr_Occurred() ? (PyErr_Clear(), -1) : number;
    }
    if (elements_of(step, &found) != 1 || found.kind != FLOAT) return NAN;
    const char *data = (const char *)found.data + found.byte_offset;
    return found.bits == 32 ? *(const float *)data : found.bits == 64 ? *(const double *)data : NAN;
}

/* (id, version) of a gradient; 0 where its class has its own idea of versions. */
static int sign(PyObject *grad, int64_t *out) {
    out[0] = out[1] = 0;
    if (grad == Py_None) return 1;
    if ((PyObject *)Py_TYPE(grad) != torch.tensor) return 0;
    PyObject *version = PyObject_GetAttr(grad, torch.version);
    if (!version) return 0;
    out[0] = (int64_t)(intptr_t)grad, out[1] = PyLong_AsLongLong(version);
    Py_DECREF(version);
    return 1;
}

/* signatures(parameters) -> bytes: (id, version) of each gradient as int64, zeros where there is none; None where one is of a
 * class that has its own idea of versions. */
static PyObject *py_signatures(PyObject *self, PyObject *parameters) {
    (void)self;
    Py_ssize_t count = PyList_Size(parameters);
    if (count < 0) return NULL;
    int64_t *found = malloc((2 * count + 1) * sizeof *found);
    if (!found) return PyErr_NoMemory();
    PyObject *result = NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *grad = PyObject_GetAttr(PyList_GetItem(parameters, i), torch.grad);
        if (!grad) goto done;
        int plain = sign(grad, found + 2 * i);
        Py_DECREF(grad);
        if (!plain) {
            if (!PyErr_Occurred()) Py_INCREF(Py_None), result = Py_None;
            goto done;
        }
    }
    result = PyBytes_FromStringAndSize((const char *)found, 2 * count * (Py_ssize_t)sizeof *found);
done:
    free(found);
    return result;
}

/* counts(parameters, state, out): the optimizer's count of each parameter into float64 [n] at an address; NaN where Python
 * has to look. */
static PyObject *py_counts(PyObject *self, PyObject *arguments) {
    PyObject *parameters, *state;
    unsigned long long out;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OOK", &parameters, &state, &out)) return NULL;
    Py_ssize_t count = PyList_Size(parameters);
    PyObject **states = count < 0 ? NULL : malloc((count + 1) * sizeof *states);
    if (!states) return count < 0 ? NULL : PyErr_NoMemory();
    int ok = states_of(parameters, state, states, count);
    for (Py_ssize_t i = 0; ok && i < count; i++) ((double *)(uintptr_t)out)[i] = count_in(states[i]);
    free(states);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

/* Fills in where a parameter's belongings lie, and the signature of its gradient; 0 where C cannot read one of them. All are
 * held from here on. */
static int look_at(PyObject *parameter, PyObject *state, PyObject *names, Row *row, int64_t *signature, PyObject *held) {
    uint64_t *moments[] = {&row->exp_avg, &row->exp_avg_sq, &row->max_exp_avg_sq};
    row->size = 0, row->grad = row->exp_avg = row->exp_avg_sq = row->max_exp_avg_sq = row->before = 0;
    if (!(row->param = address_of(parameter, &row->size))) return 0;
    PyObject *grad = PyObject_GetAttr(parameter, torch.grad);
    if (!grad) return 0;
    int64_t earlier = signature[0];
    int kept = PyList_Append(held, grad) == 0 && sign(grad, signature);
    Py_DECREF(grad);
    if (!kept) return 0;
    if (grad != Py_None) {
        if (signature[0] != earlier) { /* one that was not looked at just now: is its sign in memory? */
            PyObject *negative = PyObject_CallMethodObjArgs(grad, torch.is_neg, NULL);
            Py_XDECREF(negative);
            if (negative != Py_False) return 0;
        }
        if (!(row->grad = address_of(grad, &row->size))) return 0;
    }
    if (!state) return 1;
    if (!PyDict_Check(state)) return 0;
    for (int k = 0; k < (int)PyTuple_Size(names) && k < 3; k++) {
        PyObject *moment = PyDict_GetItemWithError(state, PyTuple_GetItem(names, k));
        if (!moment && PyErr_Occurred()) return 0;
        if (!moment || moment == Py_None) continue;
        if (!(*moments[k] = address_of(moment, &row->size)) || PyList_Append(held, moment) < 0) return 0;
    }
    return 1;
}

/* look(parameters, state, names, rows, signatures, counts, held) -> whether C can read all that is there: fills the addresses of
 * the Rows at an address (of the moments those that are named), the optimizer's counts at another as `counts` does, and int64
 * [n, 2] at one that holds zeros or what the last look left there while all of `held` was kept. What is found is appended to
 * `held`. */
static PyObject *py_look(PyObject *self, PyObject *arguments) {
    PyObject *parameters, *state, *names, *held;
    unsigned long long rows, signatures, counts;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OOO!KKKO", &parameters, &state, &PyTuple_Type, &names, &rows, &signatures, &counts, &held))
        return NULL;
    Py_ssize_t count = PyList_Size(parameters);
    PyObject **states = count < 0 ? NULL : malloc((count + 1) * sizeof *states);
    if (!states) return count < 0 ? NULL : PyErr_NoMemory();
    int readable = states_of(parameters, state, states, count);
    for (Py_ssize_t i = 0; readable && i < count; i++) {
        ((double *)(uintptr_t)counts)[i] = count_in(states[i]);
        readable = look_at(PyList_GetItem(parameters, i), states[i], names, (Row *)(uintptr_t)rows + i,
                           (int64_t *)(uintptr_t)signatures + 2 * i, held);
    }
    free(states);
    if (PyErr_Occurred()) return NULL;
    return PyBool_FromLong(readable);
}

#endif
