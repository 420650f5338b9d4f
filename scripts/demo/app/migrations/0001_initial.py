from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="LedgerEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("conversation_id", models.CharField(max_length=128)),
                ("step", models.IntegerField()),
                ("outbox_id", models.BigIntegerField()),
                ("attempt", models.IntegerField()),
            ],
            options={"db_table": "demo_ledger", "verbose_name_plural": "ledger entries"},
        ),
    ]
